"""Fit on the training rows, apply to any rows; pure functions on Arrow tables."""

from batchtrain.preprocessing.fit import fit_preprocessor
from batchtrain.preprocessing.fitted import FittedColumn, FittedPreprocessor, FittedTarget
from batchtrain.preprocessing.transform import Features, encode_target, row_weights, transform

__all__ = [
    "Features",
    "FittedColumn",
    "FittedPreprocessor",
    "FittedTarget",
    "encode_target",
    "fit_preprocessor",
    "row_weights",
    "transform",
]
