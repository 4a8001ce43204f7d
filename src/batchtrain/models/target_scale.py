"""The scale in which a regression learns its target, and the way back to the target's own units.

Networks begin with outputs of about 1, and their learning rates are made for that. A target in the
millions would need a bias of millions first (LeCun et al., 1998, "Efficient BackProp", on inputs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchtrain.errors import ArtifactError

__all__ = ["TargetScale"]


@dataclass(frozen=True)
class TargetScale:
    """A model learns `(y - mean) / deviation`.

    Attributes:
        mean: Of the training rows' targets, in the target's own units.
        deviation: Their population standard deviation, in the same units; never 0.
    """

    mean: float
    deviation: float

    def scaled(self, target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Targets as the model learns them."""
        return (target - self.mean) / self.deviation

    def restored(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """A model's outputs in the target's own units.

        float32 would round away a spread that is small beside the mean, such as that of times.
        """
        with np.errstate(over="ignore"):
            return outputs.astype(np.float64) * self.deviation + self.mean

    def to_json(self) -> dict[str, float]:
        """The scale as a JSON object; the numbers keep all their digits."""
        return {"mean": self.mean, "deviation": self.deviation}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None, *, where: str) -> TargetScale | None:
        """Read what `to_json` wrote, or null where the target is not scaled.

        Raises:
            ArtifactError: If it is something else.
        """
        if document is None:
            return None
        values = [document.get(name) for name in ("mean", "deviation")]
        mean, deviation = (value if isinstance(value, float) else math.nan for value in values)
        if len(document) != len(values) or not (math.isfinite(mean) and 0 < deviation < math.inf):
            raise ArtifactError(
                f"expected a finite mean and a deviation above 0 as the scale of the target in "
                f"{where}, found {dict(document)!r}. The artifact is damaged; make it anew"
            )
        return cls(mean, deviation)
