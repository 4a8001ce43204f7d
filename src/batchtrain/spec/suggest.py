"""TEMPORARY STUB by the lead."""
import difflib
def did_you_mean(word, choices):
    m = difflib.get_close_matches(word, list(choices), 1)
    return m[0] if m else None
