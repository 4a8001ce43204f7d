"""A trial of a pack between two epochs, apart from its pack: it can go on in any other one.

Nothing is pickled: all trials' tensors are one safetensors file, their other state is JSON in it.

Shapes: P numbers of a trial's weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from batchtrain.errors import ArtifactError

__all__ = ["MemberState", "states_from_bytes", "states_to_bytes"]

DOCUMENTS = "documents"


@dataclass(frozen=True)
class MemberState:
    """One trial, as it was at the end of an epoch.

    Attributes:
        tensors: The rows of its weights, of what its optimizer keeps, and of its best weights,
            float32 [P] each, on the CPU; none of a trial that never began.
        document: All the rest, as JSON.
    """

    tensors: Mapping[str, Tensor]
    document: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return int(self.document["epoch"])


def states_to_bytes(states: Mapping[int, MemberState]) -> bytes:
    """The trials as one file; the same trials give the same bytes.

    Args:
        states: Of the trials, by number.
    """
    documents = {str(number): dict(states[number].document) for number in sorted(states)}
    text = json.dumps(documents, allow_nan=False).encode()
    tensors = {DOCUMENTS: torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())}
    for number, state in states.items():
        # Heirs of one parent may still share its best weights, which safetensors refuses.
        tensors |= {f"{number}/{name}": value.clone() for name, value in state.tensors.items()}
    return safetensors.torch.save(tensors)


def states_from_bytes(
    data: bytes, *, where: str = "the states of a pack"
) -> dict[int, MemberState]:
    """The trials of a file.

    Raises:
        ArtifactError: If it is something else.
    """
    try:
        tensors = safetensors.torch.load(data)
        documents = json.loads(tensors.pop(DOCUMENTS).numpy().tobytes())
        found: dict[int, dict[str, Tensor]] = {int(number): {} for number in documents}
        for key, value in tensors.items():
            number, _, name = key.partition("/")
            found[int(number)][name] = value
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"expected the trials of a pack in {where}, found something else ({error!r}). "
            "Delete it to train them anew"
        ) from error
    return {
        number: MemberState(of_trial, documents[str(number)]) for number, of_trial in found.items()
    }
