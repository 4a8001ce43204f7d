"""What was found before a job is sent, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from batchtrain.errors import ClusterError, Problem, SpecError

__all__ = ["Finding", "Severity", "errors_among", "refuse_errors"]

Severity = Literal["error", "warning"]
"""Whether the job could not run, or might not do what is wanted."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: How bad it is.
        key: What it is about: a key of spec or profile, or `address`, `ray`, `python`, `token`.
        message: What was expected, what was found, and what to do; without a secret.
        where: Where spec or profile say so, if they are to be changed; empty where it is the
            cluster that does not have something.
    """

    severity: Severity
    key: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{self.severity}: {self.key}: {self.message}"


def errors_among(findings: Iterable[Finding]) -> list[Finding]:
    """Those that keep a job from running."""
    return [each for each in findings if each.severity == "error"]


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Send nothing where a job could not run.

    Raises:
        SpecError: If a key of spec or profile is among the reasons.
        ClusterError: If it is the cluster alone.
    """
    errors = errors_among(findings)
    if any(each.where for each in errors):
        raise SpecError([Problem(each.where, each.key, each.message) for each in errors])
    if errors:
        raise ClusterError("\n".join(f"{each.key}: {each.message}" for each in errors))
