"""Searching for the best spec: which trials are run, what they gave, and which is the best."""
