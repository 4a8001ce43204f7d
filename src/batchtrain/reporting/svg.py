"""From a matplotlib figure to SVG that lies inside an HTML page: inert, scaling, same each time."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context, rcParamsDefault
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["draw"]

FONT_SIZE = 12.5
"""In units of the viewBox; a page on a phone shows about 0.85 px for a unit."""

INK = "#1f2933"
MUTED = "#66717c"
GRID = "#e3e7eb"

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa5b1",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_SIZE + 1,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "text.color": INK,
    "grid.color": GRID,
    "legend.borderaxespad": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "batchtrain",
    # A name such as `$\frac{a}{b}$` is a name.
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": MUTED,
    "xtick.labelsize": FONT_SIZE - 0.5,
    "ytick.color": MUTED,
    "ytick.labelsize": FONT_SIZE - 0.5,
}

LOCAL_NAME = re.compile(r"^\{[^}]*\}")
REFERENCE = re.compile(r"(?<=^#)[\w-]+$|(?<=url\(#)[\w-]+(?=\))")
LONG_DECIMAL = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
FONT_FAMILY = re.compile(r"font-family: [^;]*(?:; )?")
GEOMETRY = ("d", "x", "y", "width", "height", "transform")
DROPPED = ("metadata", "style")


def draw(name: str, label: str, size: tuple[float, float], fill: Callable[[Figure], None]) -> str:
    """Draw one figure and return it as an `<svg>` element for HTML.

    The bytes depend on the arguments alone. The element has no width of its own: it fills its
    container between 0.75 and 1.3 times its size. Nothing in it is fetched or run, and all its
    ids begin with `name`, so that figures on one page do not meet.

    Args:
        name: Unique on the page; letters and hyphens.
        label: What the figure shows, for those who cannot see it.
        size: Width and height, in units of about one pixel.
        fill: Draws into the empty figure.
    """
    width, height = size
    with _own_style(), warnings.catch_warnings():
        # The browser has the letters that matplotlib's font, used to measure, has not.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        fill(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314  # written by matplotlib a moment ago
    _clean(root)
    _rename_ids(root, name)
    box = root.get("viewBox", f"0 0 {width:g} {height:g}")
    root.attrib.clear()
    root.attrib.update(
        {
            "viewBox": box,
            "role": "img",
            "aria-label": label,
            "style": f"width:100%;min-width:{0.75 * width:.0f}px;max-width:{1.3 * width:.0f}px;"
            "height:auto;display:block;stroke-linejoin:round;stroke-linecap:butt",
        }
    )
    return ET.tostring(root, encoding="unicode")


@contextmanager
def _own_style() -> Iterator[None]:
    """Matplotlib's own defaults with `STYLE` on top, whatever the user's configuration says."""
    defaults: dict[Any, Any] = {
        key: value
        for key, value in rcParamsDefault.items()
        # Choosing a backend here would start one for the whole process.
        if not key.startswith(("backend", "interactive", "toolbar"))
    }
    with rc_context({**defaults, **STYLE}):
        yield


def _clean(root: ET.Element) -> None:
    """Keep what is drawn and nothing else, rounded to a hundredth of a pixel."""
    for parent in root.iter():
        parent.tag = LOCAL_NAME.sub("", parent.tag)
        if parent.tag != "text":
            parent.text = None
        parent.tail = None
        for child in list(parent):
            if LOCAL_NAME.sub("", child.tag) in DROPPED:
                parent.remove(child)
        parent.attrib = {
            LOCAL_NAME.sub("", key): _tidy(key, value) for key, value in parent.attrib.items()
        }
        if parent.attrib.get("transform", "").startswith("rotate(-0 "):
            del parent.attrib["transform"]
        _share_style(parent)


def _tidy(key: str, value: str) -> str:
    if key == "style":
        return FONT_FAMILY.sub("", value)  # the page's font is the reader's own
    if key in GEOMETRY:
        return " ".join(LONG_DECIMAL.sub(_rounded, value).split())
    return value


def _share_style(parent: ET.Element) -> None:
    """Write the style of many equal marks once, above them; it is most of a scatter plot."""
    styles = {mark.get("style") for mark in parent}
    if len(parent) > 1 and len(styles) == 1 and all(mark.tag.endswith("use") for mark in parent):
        style = styles.pop()
        if style is not None:
            parent.set("style", style)
            for mark in parent:
                del mark.attrib["style"]


def _rounded(match: re.Match[str]) -> str:
    # Adding zero turns -0.0 into 0.0.
    return f"{round(float(match[0]), 2) + 0.0:g}"


def _rename_ids(root: ET.Element, prefix: str) -> None:
    """Give the ids that something refers to short names of our own, and drop the others."""
    references = {
        found: ""
        for element in root.iter()
        for value in element.attrib.values()
        for found in REFERENCE.findall(value)
    }
    names = {old: f"{prefix}-{index}" for index, old in enumerate(references)}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.attrib.pop(key)
                if value in names:
                    element.set("id", names[value])
            elif "#" in value:
                element.set(key, REFERENCE.sub(lambda match: names[match[0]], value))
