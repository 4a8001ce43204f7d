"""Values that KubeRay gives to a shell: which of them arrive there as they are.

KubeRay writes metadata and runtime environment of a RayJob as JSON, quotes that as Go's `Quote`
does, and makes it a part of one command for `bash -c`. Go puts a backslash before each quote and
backslash, which bash takes away again. But between these quotes bash obeys a dollar sign and a
backtick, and Kubernetes a dollar sign with parentheses before that.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchtrain.errors import Problem

__all__ = ["shell_problems"]

OBEYED = {"$": "a dollar sign", "`": "a backtick"}
LAST_OF_BMP = "\uffff"


def shell_problems(values: Mapping[str, str], where: str) -> list[Problem]:
    """What is wrong with values that would not arrive as they are; never repeats one of them.

    Args:
        values: By the keys that the problems name.
        where: The place that the problems name.
    """
    return [
        Problem(
            where,
            key,
            f"expected a value that a shell takes as it is, found one with {found}, as KubeRay "
            "makes it a part of a command",
            "Leave it out; another backend than kuberay takes it",
        )
        for key, value in values.items()
        if (found := _not_taken(value))
    ]


def _not_taken(value: str) -> str | None:
    """The first character that bash obeys, or that Go writes as JSON does not."""
    for character in value:
        if character in OBEYED:
            return OBEYED[character]
        # Go writes DEL as `\x7f`, and what its Unicode does not know beyond U+FFFF as `\U` and
        # eight digits, neither of which is JSON. A surrogate is a byte that was no UTF-8.
        if character == "\x7f" or character > LAST_OF_BMP or "\ud800" <= character <= "\udfff":
            return f"the character U+{ord(character):04X}"
    return None
