"""Stage 2: from prepared data to a trained model."""
