"""Stage 5: from new raw rows and a bundle to predictions."""
