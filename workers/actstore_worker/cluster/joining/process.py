"""What every process of the workers does before it starts its own Ray."""

import os
import secrets
import sys
from collections.abc import MutableMapping
from pathlib import Path

# How long Serve waits for an answer of a starting proxy. After three timeouts it kills the proxy, and the start fails:
# with Serve's own 5 seconds this happens on a machine that is busy with other things.
PROXY_READY_SECONDS = 60.0
# The largest message that Serve's proxy reads or sends: an answer to a service may be so large. Serve's own is 2 GiB.
PROXY_MESSAGE_BYTES = 64 * 2**20
_ABSENT = str(Path(__file__).parent / "absent")


def reserve_standard_output() -> int:
    """Ray prints what its processes print. From now on that goes to standard error, and the returned file descriptor is
    the real standard output.
    """
    reserved = os.dup(1)
    os.dup2(2, 1)
    return reserved


def prepare_ray(environment: MutableMapping[str, str], ray_address: str | None) -> None:
    """Prepares this process, and the environment of those that Ray starts from here. Ray is not yet imported.

    Ray listens on every interface and runs what it is sent, so our own Ray gets a secret token, which is only in the
    environment of its processes. On an existing cluster, the operator's choice applies.
    """
    sys.path.insert(0, _ABSENT)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (_ABSENT, environment.get("PYTHONPATH"))))
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Each line of every process is whole on standard error, as it was written: JSON stays JSON.
    environment.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
    environment.setdefault("RAY_DEDUP_LOGS", "0")
    environment.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_READY_SECONDS))
    environment.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(PROXY_MESSAGE_BYTES))
    if ray_address is None:
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN"] = secrets.token_urlsafe()
