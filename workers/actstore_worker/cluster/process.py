"""What every process of the workers does before it starts a Ray of its own."""

import os
import secrets
from collections.abc import MutableMapping

# How long Serve waits for an answer of a proxy that starts. After three times in vain it kills the proxy, and the start
# fails: with Serve's own 5 seconds, on a machine that is busy with other things.
PROXY_READY_SECONDS = 60.0


def reserve_standard_output() -> int:
    """Ray prints what its processes print; that goes to standard error from now on, and what is for whoever started
    this process to the file descriptor that comes back.
    """
    reserved = os.dup(1)
    os.dup2(2, 1)
    return reserved


def prepare_ray(environment: MutableMapping[str, str]) -> None:
    """Ray listens on every interface and runs what it is sent, so a Ray of our own wants a token that nobody else has.

    It lives in the environment of its processes alone. On a cluster that is not ours, the operator's choice stands.
    """
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environment.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_READY_SECONDS))
    if not environment.get("ACTSTORE_RAY_ADDRESS"):
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN"] = secrets.token_urlsafe()
