"""Check a bundle: every hash, and the outputs for its golden rows."""

from __future__ import annotations

from dataclasses import dataclass

from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.errors import VerificationError
from batchtrain.preprocessing import FittedPreprocessor
from batchtrain.scoring import CustomCode, Scorer, largest_difference, prediction_table

__all__ = ["TOLERANCE", "Verification", "verify"]

TOLERANCE = 1e-5
"""Another CPU rounds in another way: outputs may differ by this much, relative to 1 or to the
value where that is larger; of a scaled target relative to the scaled value."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        files: Files whose hash is right.
        rows: Golden rows scored.
        largest_difference: Of any output from its record; see `TOLERANCE`.
    """

    files: int
    rows: int
    largest_difference: float

    @property
    def exact(self) -> bool:
        """Whether every output is the recorded one, bit for bit."""
        return self.largest_difference == 0


def verify(bundle: ModelBundle, code: CustomCode | None = None) -> Verification:
    """Read every file against its hash, then score the golden rows from raw.

    Raises:
        ArtifactDamagedError: If a file is missing or changed.
        VerificationError: If an output differs by more than `TOLERANCE`.
    """
    files = bundle.artifact.verify()
    fitted = FittedPreprocessor.from_json(bundle.preprocessing_state(), where=bundle.artifact.url)
    scorer = Scorer.of(
        bundle.artifact,
        weights="model.safetensors",
        preprocessor=fitted,
        code=code or CustomCode(),
    )
    rows, row_id, expected = bundle.golden()
    found = prediction_table(fitted.target, row_id, scorer.score(rows).outputs)
    difference = largest_difference(found, expected, scale=scorer.target_scale)
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"the bundle {bundle.artifact.url}: expected its golden outputs within {TOLERANCE:g}, "
            f"found a difference of {difference:g}. This machine or another version of a library "
            "computes differently; export the model again with these versions"
        )
    return Verification(files=files, rows=len(row_id), largest_difference=difference)
