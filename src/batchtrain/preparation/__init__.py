"""Stage 1: from raw rows to prepared data."""
