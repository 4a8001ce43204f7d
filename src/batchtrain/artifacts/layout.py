"""The one place that knows where things lie below a storage's root."""

from __future__ import annotations

from dataclasses import dataclass

from batchtrain.storage import Storage

__all__ = ["ARTIFACT_FOLDER", "RunLayout", "prepared_key"]

# A run's name never begins with an underscore, so these cannot clash with one.
PREPARED = "_prepared"
HASH_CACHE = "_cache/content-hashes.json"


ARTIFACT_FOLDER = (
    rf"{PREPARED}/[0-9a-f]{{16}}"
    r"|[^/]+/[0-9a-f]{12}/(?:model|checkpoints/\d{12}-\d{6}|(?:reports|bundles)/[0-9a-f]{12})"
)
"""A regular expression for the folders of all artifacts below a storage's root."""


def prepared_key(fingerprint: str) -> str:
    """The folder of prepared data; every run with the same data shares it."""
    return f"{PREPARED}/{fingerprint[:16]}"


@dataclass(frozen=True)
class RunLayout:
    """The keys of one run: `<name>/<id>/...`.

    The id comes from the fingerprint of the training, so an edited spec is another run and
    never mixes with this one; a changed evaluation is another report of the same run.

    Attributes:
        storage: Where the run lies.
        name: The run's name.
        run_id: 12 hex digits.
    """

    storage: Storage
    name: str
    run_id: str

    @property
    def root(self) -> str:
        """The run's folder."""
        return f"{self.name}/{self.run_id}"

    @property
    def model(self) -> str:
        """The trained model."""
        return f"{self.root}/model"

    @property
    def owner(self) -> str:
        """The folder of the claims on the run."""
        return f"{self.root}/owner"

    @property
    def checkpoints(self) -> str:
        """The folder of the training checkpoints."""
        return f"{self.root}/checkpoints"

    def checkpoint(self, step: int, claim: int) -> str:
        """The checkpoint that a claim's owner wrote at one global step; names sort as steps do."""
        return f"{self.checkpoints}/{step:012d}-{claim:06d}"

    @property
    def newest_checkpoint(self) -> str:
        """The name of the latest checkpoint, for a storage whose listings lag."""
        return f"{self.checkpoints}/newest.json"

    def report(self, fingerprint: str) -> str:
        """One evaluation."""
        return f"{self.root}/reports/{fingerprint[:12]}"

    def bundle(self, fingerprint: str) -> str:
        """One exported bundle."""
        return f"{self.root}/bundles/{fingerprint[:12]}"

    @property
    def run_record(self) -> str:
        """Every choice that the machine made, written at the first start."""
        return f"{self.root}/run.json"

    @property
    def report_page(self) -> str:
        """The newest report, for people."""
        return f"{self.root}/report.html"

    @property
    def stage_log(self) -> str:
        """When each stage ran and how long it took."""
        return f"{self.root}/stages.json"

    @property
    def logs(self) -> str:
        """What the ranks leave when they fail."""
        return f"{self.root}/logs"

    @property
    def tensorboard(self) -> str:
        """The event files."""
        return f"{self.root}/tensorboard"
