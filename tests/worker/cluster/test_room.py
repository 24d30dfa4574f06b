"""How many capture workers a cluster gets, as Ray tells its nodes and resources; the cluster itself is a stand-in."""

from types import SimpleNamespace
from typing import Any

import pytest

from actstore_worker.cluster.joining import session
from actstore_worker.errors import SettingsError
from actstore_worker.settings import WorkerSettings

HEAD: dict[str, Any] = {"Alive": True, "Resources": {}}
NODE: dict[str, Any] = {"Alive": True, "Resources": {"CPU": 2.0}}
GONE: dict[str, Any] = {"Alive": False, "Resources": {"CPU": 2.0}}


@pytest.mark.parametrize(
    ("asked", "gpus", "nodes", "count"),
    [(None, 0, [HEAD, NODE, NODE, GONE], 2), (None, 3, [HEAD, NODE], 3), (1, 3, [NODE], 1), (4, 0, [HEAD, GONE], 4)],
)
def test_as_many_as_were_asked_for_else_one_a_gpu_or_a_node(
    asked: int | None, gpus: int, nodes: list[dict[str, Any]], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it fail where nodes are gone: they may come back."""
    monkeypatch.setattr(session, "ray", SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: {"GPU": gpus}))
    assert session.worker_count(WorkerSettings("/store", "token", capture_workers=asked)) == count


@pytest.mark.parametrize(("resources", "room"), [({"CPU": 4.0}, 4), ({"CPU": 4.0, "GPU": 2.0}, 2)])
def test_more_than_can_ever_be_placed_are_refused(
    resources: dict[str, float], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ray", SimpleNamespace(cluster_resources=lambda: resources))
    session.check_room(room)
    with pytest.raises(SettingsError, match=f"is {room + 1}; this cluster has room for {room}$"):
        session.check_room(room + 1)
