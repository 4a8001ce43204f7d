"""What was asked: the spec as frozen values. No torch, no arrow, no Ray in here."""

from batchtrain.spec.run import RunSpec

__all__ = ["RunSpec"]
