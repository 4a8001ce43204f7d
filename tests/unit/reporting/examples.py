"""Contents that look like those of real runs."""
