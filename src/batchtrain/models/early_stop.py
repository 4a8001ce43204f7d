"""Early stopping; its state is plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["EarlyStop"]


@dataclass(slots=True)
class EarlyStop:
    """Stop once a number has not become better for `patience` epochs in a row.

    A patience of 0 stops, as 1 does, at the first epoch that is not better.

    Attributes:
        patience: How many epochs without a better number are too many.
        min_delta: A change for the better that is smaller than this does not count.
        mode: `min` where less is better, such as a loss; `max` for the likes of accuracy.
        best: The best number so far; None before the first.
        bad_epochs: The epochs since then.
    """

    patience: int
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"
    best: float | None = None
    bad_epochs: int = 0

    def update(self, value: float) -> bool:
        """Take the number of one more epoch; say whether to stop. NaN and infinity are bad."""
        if self._is_better(value):
            self.best = value
            self.bad_epochs = 0
            return False
        self.bad_epochs += 1
        return self.bad_epochs >= self.patience

    def _is_better(self, value: float) -> bool:
        if self.best is None or not math.isfinite(value):
            return math.isfinite(value)
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > 0 and gain >= self.min_delta

    def state(self) -> dict[str, Any]:
        """Give what a resume needs, as a JSON object."""
        return {"best": self.best, "bad_epochs": self.bad_epochs}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self.best = None if state["best"] is None else float(state["best"])
        self.bad_epochs = int(state["bad_epochs"])
