"""Metrics: names, thresholds, and states that merge over blocks and workers.

Nothing is re-exported: only `batchtrain.metrics.compute` needs torchmetrics, which is slow to
import.
"""
