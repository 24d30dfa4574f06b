"""Notices that the Ray cluster has gone: its own processes tell nobody, and calls to it wait for minutes."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private import worker as ray_worker

_CONNECT_SECONDS = 5.0
_POLL_SECONDS = 1.0


class RayGone(Exception):
    """The GCS of the cluster, or the raylet of this node, has ended."""


@contextmanager
def watched(gone_seconds: float, gone: Callable[[RayGone], object]) -> Iterator[None]:
    """Within this context, `gone` is called in a thread of its own once the cluster of this process has gone.

    `gone_seconds`: how long GCS or raylet may refuse connections before the cluster counts as gone.
    """
    node = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    doors = {
        "its GCS": _address(ray.get_runtime_context().gcs_address),
        "the raylet of this node": (node["NodeManagerAddress"], node["NodeManagerPort"]),
    }
    stop = threading.Event()

    def watch() -> None:
        try:
            _wait(doors, gone_seconds, stop)
        except RayGone as error:
            gone(error)

    threading.Thread(target=watch, name="ray-watch", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _wait(doors: Mapping[str, tuple[str, int]], gone_seconds: float, stop: threading.Event) -> None:
    """Errors: RayGone once the cluster has gone. A busy process still accepts connections: the system does it."""
    answered = {what: time.monotonic() for what in doors}
    while not stop.wait(_POLL_SECONDS):
        for what, door in doors.items():
            if _accepts(door):
                answered[what] = time.monotonic()
            elif time.monotonic() - answered[what] > gone_seconds and not stop.is_set():
                raise RayGone(f"the Ray cluster of the workers is gone: {what} at {door[0]}:{door[1]} has ended")


def abandon_ray() -> None:
    """Kills what is left of a Ray of our own, and removes its folder: no part of it would answer a request to end."""
    node = ray_worker._global_node
    if node is None or not node.head:
        return
    folder = Path(node.temp_dir).parent
    with suppress(Exception):  # some of them have ended
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    shutil.rmtree(folder, ignore_errors=True)


def _accepts(door: tuple[str, int]) -> bool:
    with suppress(OSError):
        socket.create_connection(door, _CONNECT_SECONDS).close()
        return True
    return False


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
