"""What a person looks at after a run: the HTML report and the model card; no torch in here."""
