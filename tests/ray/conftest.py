"""Ray on this machine: started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchtrain.engines.session import RaySession

LOGICAL_CPUS = 4
"""More than the machine may have: the tests need several workers, not speed."""


@pytest.fixture(scope="session")
def ray_session() -> Iterator[RaySession]:
    """A Ray without a dashboard; the tests of tests/cluster end it, since they start their own."""
    with RaySession("local", cpus=LOGICAL_CPUS) as session:
        session.connect()
        yield session
