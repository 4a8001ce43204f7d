"""The train stage as others call it: return the published model, or train and publish it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from batchtrain.artifacts import (
    Artifact,
    BuildStatus,
    Draft,
    RunLayout,
    find_artifact,
    remove_artifacts,
    reuse_or_build,
)
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.trained import TRAINED_MODEL, TrainedModel
from batchtrain.errors import (
    ArtifactError,
    FencedError,
    InterruptedRunError,
    OwnershipError,
    StorageError,
)
from batchtrain.progress import Progress
from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel
from batchtrain.storage import Storage
from batchtrain.training.interrupt import stop_on_signals
from batchtrain.training.launcher import Launcher
from batchtrain.training.owner import RunOwner

__all__ = ["run_layout", "train"]


def run_layout(loaded: LoadedSpec, prepared: PreparedData, storage: Storage) -> RunLayout:
    """Where the run of this spec on these data lies."""
    run_id = fingerprint_of(_inputs(loaded, prepared))[:12]
    return RunLayout(storage=storage, name=loaded.spec.name, run_id=run_id)


def train(
    loaded: LoadedSpec,
    prepared: PreparedData,
    layout: RunLayout,
    progress: Progress,
    *,
    allow_code: Sequence[str] = (),
    launcher: Launcher | None = None,
    take_over: bool = False,
    pause_after: int | None = None,
) -> tuple[TrainedModel, BuildStatus]:
    """Train the model of a spec on prepared data, once.

    Args:
        loaded: The spec.
        prepared: The rows.
        layout: Where the run lies.
        progress: Hears of it.
        allow_code: Packages whose code a custom model may run.
        launcher: Runs the ranks; left out, there is one, in this process.
        take_over: Whether to go on although another process seems to write this run.
        pause_after: The epoch after which the training stops for a while; None for its last.

    Raises:
        PausedRunError: If it came to `pause_after`.
        InterruptedRunError: If Ctrl-C or SIGTERM came; after both, calling again goes on.
        OwnershipError: If another process writes this run.
        TrainingError: If the training failed.
    """
    owner = RunOwner(layout, progress, take_over=take_over)
    inputs = _inputs(loaded, prepared)

    def build(draft: Draft) -> Mapping[str, Any]:
        from batchtrain.training.train import train_model  # a run that reuses needs no torch

        return train_model(
            loaded,
            prepared,
            layout,
            draft,
            progress,
            owner=owner,
            launcher=launcher,
            allow_code=allow_code,
            stop_requested=stop_requested,
            pause_after=pause_after,
        )

    with closing(owner):
        if find_artifact(layout.storage, layout.model, TRAINED_MODEL) is None:
            # What is found from here on, nobody else can still be about to publish.
            _claim(owner, layout)
        with stop_on_signals() as stop_requested:
            artifact, status = _published_by_any(layout, build, owner.check, inputs)
    _clean(layout, progress)
    if stop_requested():
        raise _stopped_after(artifact)
    is_resumed = status == "built" and owner.checkpoint is not None
    return TrainedModel(artifact), "resumed" if is_resumed else status


def _published_by_any(
    layout: RunLayout,
    build: Callable[[Draft], Mapping[str, Any]],
    check: Callable[[], None],
    inputs: Mapping[str, Any],
) -> tuple[Artifact, BuildStatus]:
    """The model, also where another process publishes it first and so ends this one's claim."""
    place = (layout.storage, layout.model, TRAINED_MODEL)
    try:
        return reuse_or_build(*place, inputs=inputs, build=build, check=check)
    except FencedError:
        if find_artifact(*place) is None:
            raise
        return reuse_or_build(*place, inputs=inputs, build=build)


def _stopped_after(model: Artifact) -> InterruptedRunError:
    return InterruptedRunError(
        f"stopped after the training, whose model is {model.url}. "
        "Run the same command again to go on from there"
    )


def _claim(owner: RunOwner, layout: RunLayout) -> None:
    """Claim a run, unless its owner publishes the model this very moment."""
    try:
        owner.claim()
    except (ArtifactError, OwnershipError):
        if find_artifact(layout.storage, layout.model, TRAINED_MODEL) is None:
            raise


def _clean(layout: RunLayout, progress: Progress) -> None:
    """Delete what only the training needed.

    Also where an earlier call published the model and was killed before it came to this.
    """
    try:
        for folder in (layout.checkpoints, layout.owner):
            remove_artifacts(layout.storage, folder)
    except StorageError as error:
        progress.note(f"the model is published; what its training left stays there: {error}")


def _inputs(loaded: LoadedSpec, prepared: PreparedData) -> dict[str, Any]:
    """What a trained model depends on, as JSON.

    `tracking.monitor` is among them, unlike the rest of `tracking`: it decides which splits the
    history holds, and whether anybody looked at the test split while training.
    """
    spec = loaded.spec
    inputs: dict[str, Any] = {
        "stage": "train",
        "format": TRAINED_MODEL.format,
        "prepared": prepared.artifact.manifest.fingerprint,
        # Of its assets the bytes count, and not where they lie.
        "model": spec.model.model_dump(mode="json", exclude={"assets"}),
        # When the state is saved changes nothing of what comes out.
        "training": spec.training.model_dump(mode="json", exclude={"checkpoint", "warm_start"}),
        "monitor": sorted(spec.tracking.monitor),
        "determinism": spec.determinism,
        "seed": spec.seed,
    }
    if not spec.training.changes:
        # Runs that knew no changes keep their name.
        del inputs["training"]["changes"]
    if spec.training.checkpoint.keep_best != 1:
        inputs["keep_best"] = spec.training.checkpoint.keep_best
    if spec.training.warm_start is not None:
        from batchtrain.training.warm_start import warm_start_bundle

        bundle = warm_start_bundle(spec.training.warm_start, loaded.path.parent)
        # Wherever it lies, it is the same weights.
        inputs["warm_start"] = {
            "bundle": bundle.artifact.manifest.digest,
            "match": spec.training.warm_start.match,
        }
    if isinstance(spec.model, CustomModel):
        from batchtrain.models.custom import code_hash

        inputs["code"] = code_hash(spec.model.target, search=loaded.path.parent)
        if spec.model.assets:
            from batchtrain.models.assets import asset_hashes, read_assets

            inputs["assets"] = asset_hashes(read_assets(loaded))
    return inputs
