"""One process's connection to a Ray cluster: its own Ray, or one that it joins."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actstore_worker.cluster.joining.agents import agent_ports_chosen
from actstore_worker.cluster.joining.sockets import check_cluster, no_cluster

NAMESPACE = "actstore"
COORDINATOR = "coordinator"
POLL_SECONDS = 0.05
_REMOVE_SECONDS = 10.0
_RAY_FOLDER = "ray"


@contextmanager
def ray_session(address: str | None, object_store_bytes: int) -> Iterator[None]:
    """Within this context, this process belongs to a Ray cluster: the one at the address, or its own.

    Errors: SettingsError if the cluster at the address cannot be joined.
    """
    if address is not None:
        _join(address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # A short path, because Ray's socket names must fit into 107 bytes; the folder is not needed afterwards. Only its
    # owner may enter it: Ray makes everything below writable for all users.
    folder = Path(tempfile.mkdtemp(prefix="actstore-", dir="/tmp"))
    try:
        # Ray's workers import from the folder that it is started in. That would be a user's folder, which may contain a
        # random.py.
        with chdir(folder), agent_ports_chosen():
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                _temp_dir=str(folder / _RAY_FOLDER),
            )
        yield
    finally:
        ray.shutdown()
        _remove(folder)


def _join(address: str) -> None:
    check_cluster(address)
    try:
        ray.init(address=address, namespace=NAMESPACE)
    except (RuntimeError, ConnectionError, ValueError, SystemExit) as error:  # the last error
        raise no_cluster(address, f"Ray cannot join it ({error})") from error


def _remove(folder: Path) -> None:
    """Removes the folder of a Ray that was shut down.

    Its processes end a moment later, and may write into the folder while it is removed.
    """
    give_up = time.monotonic() + _REMOVE_SECONDS
    while folder.exists() and time.monotonic() < give_up:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(POLL_SECONDS)


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Places an actor on this node, if it has to live as long as this process: it would die too soon with
    another node.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def on_head() -> dict[str, float]:
    """Resources that only the head of the cluster has: other nodes come and go."""
    return {"node:__internal_head__": 0.001}
