"""Draw `row-order.svg` with the functions that training uses: `python docs/draw_row_order.py`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from batchtrain.row_order import WINDOW_ROWS, RowOrder, lane_bounds, rank_lanes, rank_rows

__all__ = ["draw", "order_in_words"]

ORDER = RowOrder(num_rows=23, lanes=4, shards_per_lane=1, window_rows=WINDOW_ROWS, seed=7)
BATCH_ROWS, WORLD_SIZE, EPOCH = 6, 2, 0

FILL = ("#1f5a96", "#85b3df", "#b4500b", "#f3b27a")
"""One colour for each rank, one shade of it for each of its lanes."""
ON_FILL = ("white", "#10233a", "white", "#3d1c02")
RANK_COLOUR = ("#1f5a96", "#b4500b")
INK, MUTED, RULE = "#1f2933", "#5b6670", "#9aa5b1"

LEFT, BOX, STEP = 1.7, 0.86, 1.0
GAP = 0.55
"""Between two batches, in boxes."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "batchtrain",
    "text.color": INK,
}


def order_in_words() -> str:
    """The order that the picture shows; it is in the file's description too."""
    return " ".join(map(str, ORDER.epoch(EPOCH)))


def draw() -> bytes:
    """The picture as SVG; the same bytes each time."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 7.9), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-0.25, 27.75)
        axes.set_ylim(-0.35, 22.7)
        axes.invert_yaxis()
        axes.set_axis_off()
        _draw_lanes(axes, top=0.0)
        _draw_rounds(axes, top=5.0)
        _draw_sequence(axes, top=12.5)
        _draw_ranks(axes, top=17.6)
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": None, "Description": order_in_words()}
        FigureCanvasSVG(figure).print_svg(file, metadata=metadata)
    return file.getvalue()


def _draw_lanes(axes: Axes, top: float) -> None:
    _title(
        axes,
        top,
        "1",
        "Training rows in lanes",
        "N = 23, V = 4; a colour is a rank, a shade is a lane",
    )
    bounds = lane_bounds(ORDER.num_rows, ORDER.lanes)
    for lane in range(ORDER.lanes):
        rows = range(bounds[lane], bounds[lane + 1])
        places = [LEFT + row * STEP + lane * GAP for row in rows]
        for row, x in zip(rows, places, strict=True):
            _row(axes, x, top + 1.1, row)
        _brace(axes, places[0], places[-1] + BOX, top + 2.2, f"lane {lane}")
        rank = next(
            rank for rank in range(WORLD_SIZE) if lane in rank_lanes(ORDER.lanes, WORLD_SIZE, rank)
        )
        middle = (places[0] + places[-1] + BOX) / 2
        axes.text(
            middle, top + 3.55, f"rank {rank}", ha="center", va="center", color=RANK_COLOUR[rank]
        )


def _draw_rounds(axes: Axes, top: float) -> None:
    _title(
        axes,
        top,
        "2",
        "Permuted lanes, permuted rounds",
        "a round takes the next row of each lane, in the order of the small numbers",
    )
    order = ORDER.epoch(EPOCH)
    lane_of = _lane_of(order)
    for lane in range(ORDER.lanes):
        y = top + 1.75 + lane * 1.28
        axes.text(LEFT - 0.25, y + BOX / 2, f"lane {lane}", ha="right", va="center", color=MUTED)
        for turn, row in enumerate(ORDER.lane_rows(EPOCH, lane)):
            x = LEFT + 0.6 + turn * 3.6
            _row(axes, x, y, int(row))
            place = int(np.flatnonzero(order == row)[0]) - turn * ORDER.lanes
            axes.text(x + BOX + 0.2, y + BOX / 2, f"{place + 1}.", va="center", color=MUTED, size=9)
    rounds = -(-ORDER.num_rows // ORDER.lanes)
    for turn in range(rounds):
        x = LEFT + 0.6 + turn * 3.6
        visits = np.count_nonzero(np.arange(len(lane_of)) // ORDER.lanes == turn)
        label = f"round {turn}" if visits == ORDER.lanes else f"round {turn} (short)"
        axes.text(x, top + 1.4, label, va="center", color=MUTED, size=9)


def _draw_sequence(axes: Axes, top: float) -> None:
    _title(
        axes,
        top,
        "3",
        "One round after another is the epoch; 6 positions are a batch",
        "B = 6; the same for any number of ranks",
    )
    order = ORDER.epoch(EPOCH)
    for step in range(ORDER.num_batches(BATCH_ROWS)):
        start = step * BATCH_ROWS
        batch = order[start : start + BATCH_ROWS]
        for place, row in enumerate(batch, start):
            _row(axes, _x_of(place), top + 1.1, int(row))
        end = _x_of(start + len(batch) - 1) + BOX
        label = f"batch {step}" if len(batch) == BATCH_ROWS else f"batch {step}: {len(batch)} rows"
        _brace(axes, _x_of(start), end, top + 3.25, label, colour=INK)
    for turn in range(-(-ORDER.num_rows // ORDER.lanes)):
        first = turn * ORDER.lanes
        last = min(first + ORDER.lanes, ORDER.num_rows) - 1
        y = top + 2.27
        axes.plot([_x_of(first), _x_of(last) + BOX], [y, y], color=RULE, lw=1.2)
        middle = (_x_of(first) + _x_of(last) + BOX) / 2
        axes.text(middle, y + 0.4, f"round {turn}", ha="center", va="center", color=MUTED, size=9)


def _draw_ranks(axes: Axes, top: float) -> None:
    _title(
        axes,
        top,
        "4",
        "Each rank serves the rows of its lanes",
        "W = 2; together they serve each row of the batch once",
    )
    order = ORDER.epoch(EPOCH)
    for rank in range(WORLD_SIZE):
        y = top + 1.1 + rank * 1.9
        axes.text(
            LEFT - 0.25,
            y + BOX / 2,
            f"rank {rank}",
            ha="right",
            va="center",
            weight="bold",
            color=RANK_COLOUR[rank],
        )
        mine = rank_rows(
            ORDER, epoch=EPOCH, batch_rows=BATCH_ROWS, world_size=WORLD_SIZE, rank=rank
        )
        for place, row in enumerate(order):
            if row in mine.rows:
                _row(axes, _x_of(place), y, int(row))
            else:
                _empty(axes, _x_of(place), y)
        for step, count in enumerate(np.diff(mine.step_starts)):
            share = f"{count} of {ORDER.batch_size(BATCH_ROWS, step)}"
            x = (_x_of(step * BATCH_ROWS) + _x_of(min(step * BATCH_ROWS + 5, 22)) + BOX) / 2
            axes.text(x, y + BOX + 0.42, share, ha="center", va="center", color=MUTED, size=9)


def _lane_of(rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(lane_bounds(ORDER.num_rows, ORDER.lanes), rows, side="right") - 1


def _x_of(position: int) -> float:
    return LEFT + position * STEP + position // BATCH_ROWS * GAP


def _title(axes: Axes, y: float, number: str, title: str, more: str) -> None:
    axes.text(0, y + 0.3, f"{number}  {title}", weight="bold", size=11.5, va="center")
    axes.text(27.4, y + 0.3, more, ha="right", va="center", color=MUTED, size=9)


def _row(axes: Axes, x: float, y: float, row: int) -> None:
    lane = int(_lane_of(np.array([row]))[0])
    box = FancyBboxPatch(
        (x, y), BOX, BOX, boxstyle="round,pad=0,rounding_size=0.14", fc=FILL[lane], ec="none"
    )
    axes.add_patch(box)
    axes.text(
        x + BOX / 2, y + BOX / 2, str(row), ha="center", va="center_baseline", color=ON_FILL[lane]
    )


def _empty(axes: Axes, x: float, y: float) -> None:
    middle = y + BOX / 2
    axes.plot([x + 0.3, x + BOX - 0.3], [middle, middle], color="#cfd6dd", lw=1.2)


def _brace(axes: Axes, start: float, end: float, y: float, label: str, colour: str = MUTED) -> None:
    axes.plot([start, start, end, end], [y, y + 0.2, y + 0.2, y], color=RULE, lw=1.2)
    axes.text((start + end) / 2, y + 0.65, label, ha="center", va="center", color=colour, size=9.5)


if __name__ == "__main__":
    target = Path(__file__).with_name("row-order.svg")
    target.write_bytes(draw())
    sys.stdout.write(f"wrote {target.name}\n")
