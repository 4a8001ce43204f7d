"""PyYAML's syntax errors in plain words."""

from __future__ import annotations

import yaml

__all__ = ["explain_syntax_error"]

# The start of PyYAML's sentence, ours, and what to do. Where PyYAML points at the place that it
# noticed, not at the one to look at, the last column says to take the start of the construct.
SENTENCES: tuple[tuple[str, str, str, bool], ...] = (
    (
        "mapping values are not allowed here",
        "a `:` stands where no key can be",
        "Check the indentation, or put a value that holds `: ` in quotes",
        False,
    ),
    (
        "could not find expected ':'",
        "expected `:` after a key",
        "Write `key: value`, with a space after the colon",
        True,
    ),
    (
        "found character '\\t' that cannot start any token",
        "found a tab",
        "Indent with spaces",
        False,
    ),
    (
        "found character",
        "a value cannot start with this character",
        "Put the value in quotes",
        False,
    ),
    (
        "found unexpected end of stream",
        "a quote is opened here and never closed",
        "Close the quote",
        True,
    ),
    (
        "found unknown escape character",
        "found a backslash that means nothing in double quotes",
        "Write the text in single quotes, or double the backslash",
        False,
    ),
    (
        "expected <block end>",
        "this line is indented differently from its section",
        "Give all keys of a section the same indentation",
        False,
    ),
    ("expected ',' or ']'", "expected `,` or `]`", "Close the list", False),
    ("expected ',' or '}'", "expected `,` or `}`", "Close the section", False),
    (
        "expected '<document start>'",
        "the text goes on after its end",
        "Check the indentation, and close no bracket twice",
        False,
    ),
    (
        "expected the node content",
        "expected a value",
        "Check for a bracket or comma too many",
        False,
    ),
)


def explain_syntax_error(error: yaml.MarkedYAMLError) -> tuple[str, str, yaml.Mark | None]:
    """Say what is wrong, what to do, and where to look."""
    problem = error.problem or error.context or "this cannot be read"
    for start, message, hint, from_start in SENTENCES:
        if problem.startswith(start):
            mark = error.context_mark if from_start else error.problem_mark
            return message, hint, mark or error.problem_mark
    return f"not valid YAML: {problem}", "", error.problem_mark or error.context_mark
