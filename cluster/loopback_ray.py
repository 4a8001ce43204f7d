"""The `ray` command, for nodes that listen on 127.0.0.1 only; `local.sh` starts them with it.

`ray start` replaces 127.0.0.1 by the machine's address in the network, and all servers of a node
then listen for everybody. With RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which is how Ray runs on those
systems, it does not; but then no second node may join. So the variable is for the processes that
this one starts, and here the two places that it decides are set one by one. They are private names
of Ray: the test that looks who listens fails where a later version has others.
"""

from __future__ import annotations

import os

from ray._private import ray_constants, services
from ray.scripts.scripts import main


def _loopback(address: str | None = None) -> str:  # noqa: ARG001  # as in Ray
    """Where a node can be reached."""
    return "127.0.0.1"


if __name__ == "__main__":
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.get_node_ip_address = _loopback
    main()
