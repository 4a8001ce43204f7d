"""The cluster that the options of a command name."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchtrain.submission.checking import dashboard_address, refuse_plain_http
from batchtrain.submission.profile import BackendName, KubernetesSettings, Profile
from batchtrain.submission.profiles import find_profile
from batchtrain.submission.request import Backend
from batchtrain.submission.token import find_token

__all__ = ["Cluster"]


@dataclass(frozen=True)
class Cluster:
    """Where jobs go.

    Attributes:
        profile: What is known of it, with the backend and the address that are in force.
        given: The options that lead there again from any folder; for `local` see `words`.
    """

    profile: Profile
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend(self) -> BackendName:
        """What takes the jobs."""
        return self.profile.backend

    @property
    def address(self) -> str | None:
        """The dashboard, or for `local` the folder of the storage; None where unsaid."""
        return self.profile.address

    @property
    def words(self) -> str:
        """The options that lead there again from any folder, for advice that can be pasted."""
        given = self.given
        if self.backend == "local":
            # No profile need say more: a job lies in its storage.
            given = {"--backend": "local", "--address": str(self._folder)}
        return "".join(f" {option} {shlex.quote(value)}" for option, value in given.items())

    @property
    def place(self) -> str:
        """What a profile leads to, and the file that says so; empty where it is no profile's."""
        origin = self.profile.origin
        if origin is None or self.backend == "local":
            return ""
        of = f"(profile {self.profile.name} of {origin})"
        if self.backend == "kuberay":
            namespace = (self.profile.kubernetes or KubernetesSettings()).namespace
            return f"the namespace {namespace} with the image {self.profile.image} {of}"
        if "--address" in self.given:
            return ""
        return f"{dashboard_address(self.address, os.environ)} {of}"

    @classmethod
    def of(
        cls,
        address: str | None,
        name: str | None,
        file: Path | None,
        backend: BackendName | None,
        *,
        folder: Path | None = None,
    ) -> Cluster:
        """From the options of a command; what is given there goes before the profile."""
        profile = Profile()
        if name is not None or file is not None:
            profile = find_profile(name, file, folder or Path.cwd())
        chosen = backend or profile.backend
        found_in = str(profile.origin.file) if profile.origin is not None else None
        given = {
            "--profile": profile.name,
            "--profiles": found_in,
            "--backend": backend,
            "--address": address,
        }
        where = address or profile.address
        if chosen == "local":
            where = where or profile.storage
        changed = profile.model_copy(update={"backend": chosen, "address": where})
        return cls(changed, {option: value for option, value in given.items() if value})

    def at(self, storage: str) -> Cluster:
        """The same for a run: `local` keeps its jobs in the storage of the run."""
        if self.backend != "local":
            return self
        return replace(self, profile=self.profile.model_copy(update={"address": storage}))

    def connect(self) -> Backend:
        """What takes the jobs, ready to be asked.

        Raises:
            ClusterError: If nobody answers there, or a token would be shown to others on the way.
        """
        if self.backend == "local":
            from batchtrain.submission.local_jobs import LocalJobs

            return LocalJobs(self._folder)
        if self.backend == "kuberay":
            from batchtrain.submission.kuberay import KubeRayBackend

            return KubeRayBackend(self.profile)
        from batchtrain.submission.ray_jobs import RayJobs

        origin = self.profile.origin
        if origin and self.address and not origin.is_own and "--address" not in self.given:
            refuse_plain_http(self.address, origin.file, find_token(os.environ))
        return RayJobs(self.address)

    @property
    def _folder(self) -> Path:
        """Where `local` keeps its jobs."""
        return Path(self.address or "runs").expanduser().resolve()
