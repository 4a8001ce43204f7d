"""Clusters of their own: there is one Ray at a time, so that of the tests before ends here."""

from __future__ import annotations

import pytest
import ray


@pytest.fixture(autouse=True, scope="session")
def _no_other_ray() -> None:
    ray.shutdown()
