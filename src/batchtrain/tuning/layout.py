"""Where a search lies below a storage's root."""

from __future__ import annotations

from dataclasses import dataclass

from batchtrain.storage import Storage

__all__ = ["SearchLayout"]


@dataclass(frozen=True)
class SearchLayout:
    """The keys of one search: `<name>/search-<id>/...`, beside the runs of that name.

    Attributes:
        storage: Where it lies.
        name: The spec's name.
        search_id: 12 hex digits, of all that decides what is tried.
    """

    storage: Storage
    name: str
    search_id: str

    @property
    def root(self) -> str:
        """The search's folder."""
        return f"{self.name}/search-{self.search_id}"

    def outcome(self, unit: str) -> str:
        """What came of a unit of work, by its key; nothing of a search counts before it is here."""
        return f"{self.root}/units/{unit}.json"

    def states(self, unit: str) -> str:
        """The states of a pack's members, where they are to go on."""
        return f"{self.root}/states/{unit}.safetensors"

    @property
    def record(self) -> str:
        """What the machine chose at the first start."""
        return f"{self.root}/search.json"

    @property
    def seconds(self) -> str:
        """How long all attempts took together, where the spec limits that."""
        return f"{self.root}/seconds.json"

    @property
    def table(self) -> str:
        """All trials."""
        return f"{self.root}/table.json"

    @property
    def page(self) -> str:
        """The same for people."""
        return f"{self.root}/search.html"

    @property
    def best_spec(self) -> str:
        """The spec of the best trial."""
        return f"{self.root}/best.yaml"

    @property
    def tensorboard(self) -> str:
        """The event files."""
        return f"{self.root}/tensorboard"
