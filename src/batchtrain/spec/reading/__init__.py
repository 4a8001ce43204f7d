"""From the text of a spec file to a document with places, and from faults to sentences."""
