"""Many trials of one shape, trained together in one program; each as if it were alone."""
