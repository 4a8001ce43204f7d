"""Column names: what a name may be, and what was meant by one that is not there."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from batchtrain.errors import DataError, SchemaMismatchError

__all__ = ["check_names", "extra_columns", "require_columns", "similar_name"]


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse names that cannot tell columns apart.

    Raises:
        DataError: If a name is empty, occurs twice, or holds a line break.
    """
    if not names:
        raise DataError(f"{where}: expected at least one column, found none. Use another table")
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(
                f"{where}: expected a name for every column, found {name!r} for column {place} "
                f"of {len(names)}. Name it, or remove the column"
            )
        if "\n" in name or "\r" in name:
            raise DataError(
                f"{where}: expected column names of one line, found {name!r} for column {place}. "
                "Rename it; if the cell was not meant to span lines, look for an unclosed quote"
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{where}: expected different column names, found {twice[0]!r} "
            f"{names.count(twice[0])} times{_and_more(len(twice) - 1, 'name')}. "
            "Rename or remove one of them"
        )


def require_columns(names: Sequence[str], required: Iterable[str], where: str) -> None:
    """Refuse a table that lacks a required column; order and extra columns do not matter.

    Raises:
        SchemaMismatchError: It lists every missing column, each with the nearest name.
    """
    missing = [name for name in required if name not in set(names)]
    if not missing:
        return
    described = ", ".join(_missing(name, names) for name in missing[:20])
    listed = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    raise SchemaMismatchError(
        f"{where}: expected the column{'s' if len(missing) > 1 else ''} {described}"
        f"{_and_more(len(missing) - 20, 'column')}, found only {listed}. "
        "Add the missing data, or rename the column"
    )


def extra_columns(names: Iterable[str], columns: Iterable[str]) -> tuple[str, ...]:
    """The names that no one asked for, in their order; readers ignore such columns."""
    asked = set(columns)
    return tuple(name for name in names if name not in asked)


def similar_name(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or None."""
    others = list(names)
    folded = {_folded(other): other for other in reversed(others)}
    if _folded(name) in folded:
        return folded[_folded(name)]
    close = difflib.get_close_matches(name, others, n=1)
    return close[0] if close else None


def _missing(name: str, names: Sequence[str]) -> str:
    similar = similar_name(name, names)
    if similar is None:
        return repr(name)
    if unicodedata.normalize("NFC", similar) == unicodedata.normalize("NFC", name):
        return f"{name!r} ({similar!r} looks the same but is another Unicode form, NFC or NFD)"
    if _folded(similar) == _folded(name):
        return f"{name!r} ({similar!r} differs in upper and lower case or in spaces)"
    return f"{name!r} (did you mean {similar!r}?)"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _and_more(count: int, noun: str) -> str:
    return f" (and {count} more {noun}{'s' if count > 1 else ''})" if count > 0 else ""
