"""Stage 3: measure a trained model on every split and write the report."""
