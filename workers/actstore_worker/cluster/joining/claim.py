"""Ensures that a cluster runs only one deployment."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.exceptions import RayError

from actstore_worker.cluster.joining.session import NAMESPACE, POLL_SECONDS, on_this_node
from actstore_worker.errors import SettingsError
from actstore_worker.settings import WorkerSettings

_NAME = "deployment"
# How long the claim of a killed process may outlive it.
_CLAIM_SECONDS = 10.0
# How long another deployment's claim may take to answer on a machine that is busy with that deployment.
_ANSWER_SECONDS = 60.0


@contextmanager
def only_deployment(settings: WorkerSettings) -> Iterator[None]:
    """Within this context, holds the claim that only one deployment can have on an existing cluster.

    Coordinator and application have fixed names, so another deployment's would be mistaken for ours. The claim is an
    actor that ends with this process, however it ends.

    Errors: SettingsError if another deployment runs.
    """
    if settings.ray_address is None:
        yield
        return
    placed = ray.remote(_Claim).options(name=_NAME, num_cpus=0, scheduling_strategy=on_this_node())
    claim, give_up = None, time.monotonic() + _CLAIM_SECONDS
    what = f"workers over {settings.store}, process {os.getpid()} on {socket.gethostname()}"
    while claim is None:
        try:
            claim = placed.remote(what)
        except ValueError:  # Ray takes a moment to end the claim of a killed process.
            if time.monotonic() > give_up:
                message = (
                    f"on the Ray cluster at {settings.ray_address} there are already {_claimed()}; a cluster has room"
                )
                raise SettingsError(f"{message} for one deployment: stop that one, or join another cluster") from None
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        ray.kill(claim)


class _Claim:
    """The claim, as an actor."""

    def __init__(self, what: str) -> None:
        self._what = what

    def what(self) -> str:
        return self._what


def _claimed() -> str:
    with suppress(RayError, ValueError):
        return str(ray.get(ray.get_actor(_NAME, NAMESPACE).what.remote(), timeout=_ANSWER_SECONDS))
    return "other workers"
