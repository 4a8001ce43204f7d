"""Stage 4: the bundle, proved on raw rows before it is published."""
