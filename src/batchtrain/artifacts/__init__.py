"""What exists: published artifacts, each with a manifest that is written last."""

from batchtrain.artifacts.artifact import (
    Artifact,
    ArtifactKind,
    BuildStatus,
    Draft,
    find_artifact,
    open_artifact,
    remove_artifacts,
    reuse_or_build,
)
from batchtrain.artifacts.layout import RunLayout, prepared_key

__all__ = [
    "Artifact",
    "ArtifactKind",
    "BuildStatus",
    "Draft",
    "RunLayout",
    "find_artifact",
    "open_artifact",
    "prepared_key",
    "remove_artifacts",
    "reuse_or_build",
]
