"""What a person looks at after a run: the HTML report and the model card; no torch in here."""

from batchtrain.reporting.card import render_model_card
from batchtrain.reporting.content import (
    MAX_POINTS,
    ChangeRow,
    ColumnRow,
    ConfusionData,
    EpochRow,
    LineData,
    ParameterRow,
    PrimaryMetric,
    RegressionData,
    ReportContent,
    RequirementRow,
    SplitSummary,
    StageRow,
    TruthRow,
)
from batchtrain.reporting.render import render_report

__all__ = [
    "MAX_POINTS",
    "ChangeRow",
    "ColumnRow",
    "ConfusionData",
    "EpochRow",
    "LineData",
    "ParameterRow",
    "PrimaryMetric",
    "RegressionData",
    "ReportContent",
    "RequirementRow",
    "SplitSummary",
    "StageRow",
    "TruthRow",
    "render_model_card",
    "render_report",
]
