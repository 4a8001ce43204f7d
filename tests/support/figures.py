"""The figures and tables of a report, as a test reads them."""

from __future__ import annotations

import re

__all__ = ["cells", "figure_of", "markers", "texts"]


def figure_of(page: str, label: str) -> str:
    """The `<svg>` element of a page whose label begins so."""
    figures = re.findall(r"<svg\b.*?</svg>", page, flags=re.DOTALL)
    return next(figure for figure in figures if f'aria-label="{label}' in figure)


def texts(figure: str) -> list[str]:
    """All texts of a figure, in drawing order."""
    return [text.strip() for text in re.findall(r"<text\b[^>]*>([^<]*)</text>", figure)]


def markers(figure: str, color: str) -> int:
    """How many points a figure has in a colour, those of the legend not counted."""
    groups = re.findall(rf'<g\b[^>]*"[^"]*{color}[^>]*>((?:\s*<use\b[^>]*>)+)', figure)
    return sum(group.count("<use") for group in groups)


def cells(page: str, heading: str) -> list[list[str]]:
    """The body of the first table below a heading, row by row."""
    after = page[re.search(rf"<h[23]>{re.escape(heading)}</h[23]>", page).end() :]  # type: ignore[union-attr]
    body = re.search(r"<tbody>(.*?)</tbody>", after, flags=re.DOTALL)
    assert body is not None
    rows = re.findall(r"<tr\b.*?</tr>", body[1], flags=re.DOTALL)
    return [
        [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", row)]
        for row in rows
    ]
