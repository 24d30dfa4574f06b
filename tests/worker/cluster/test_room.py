"""How many capture workers a cluster gets, as Ray tells its nodes and resources; the cluster itself is a stand-in."""

from types import SimpleNamespace
from typing import Any

import pytest

from actstore_worker.cluster.placement import resources
from actstore_worker.errors import SettingsError
from actstore_worker.settings import RayLimits, WorkerSettings

HEAD: dict[str, Any] = {"NodeID": "1" * 56, "Alive": True, "Resources": {}}
NODE: dict[str, Any] = {"NodeID": "2" * 56, "Alive": True, "Resources": {"CPU": 2.0}}
GONE: dict[str, Any] = {"NodeID": "3" * 56, "Alive": False, "Resources": {"CPU": 2.0}}
GPUS: dict[str, Any] = {"NodeID": "4" * 56, "Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}


def stand_in(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, Any], here: dict[str, Any] = HEAD) -> None:
    together: dict[str, float] = {}
    for node in nodes:
        for name, amount in node["Resources"].items() if node["Alive"] else ():
            together[name] = together.get(name, 0) + amount
    context = SimpleNamespace(get_node_id=lambda: here["NodeID"])
    cluster = SimpleNamespace(
        nodes=lambda: list(nodes), cluster_resources=lambda: together, get_runtime_context=lambda: context
    )
    monkeypatch.setattr(resources, "ray", cluster)


def settings(**limits: Any) -> WorkerSettings:
    named = {name: limits.pop(name) for name in ("device", "capture_workers") if name in limits}
    return WorkerSettings("/store", "token", ray=RayLimits(**limits), **named)


@pytest.mark.parametrize(
    ("asked", "nodes", "most", "room"),
    [
        ({}, [HEAD, NODE, NODE, GONE], 2, 4),
        ({}, [HEAD, NODE, GPUS], 4, 4),
        ({"capture_workers": 1}, [HEAD, GPUS], 1, 4),
        ({"gpus_max": 8}, [HEAD], 8, 0),
        ({"gpus_max": 8}, [HEAD, NODE, GPUS], 8, 4),
        ({"gpus_max": 2}, [HEAD, GPUS], 4, 4),
        ({"gpus_max": 8, "device": "cpu"}, [HEAD, NODE], 1, 2),
        ({"device": "cuda"}, [HEAD, NODE], 1, 0),
        ({}, [HEAD, GONE], 1, 0),
    ],
)
def test_as_many_as_were_asked_for_else_one_a_gpu_that_may_come_or_a_node(
    asked: dict[str, Any], nodes: list[dict[str, Any]], most: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it fail where nodes are gone: they may come back."""
    stand_in(monkeypatch, *nodes)
    on_gpus = resources.uses_gpus(settings(**asked))
    assert resources.worker_count(settings(**asked), on_gpus=on_gpus) == most
    assert resources.worker_room(on_gpus=on_gpus) == room


@pytest.mark.parametrize(("gpus_max", "nodes", "room"), [(None, [NODE, NODE], 4), (None, [GPUS], 4), (6, [HEAD], 6)])
def test_more_than_can_ever_be_placed_are_refused(
    gpus_max: int | None, nodes: list[dict[str, Any]], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, *nodes)
    resources.check_room(settings(capture_workers=room, gpus_max=gpus_max))
    resources.check_room(settings(gpus_max=gpus_max))
    with pytest.raises(SettingsError, match=f"is {room + 1}; this cluster has room for {room} "):
        resources.check_room(settings(capture_workers=room + 1, gpus_max=gpus_max))


@pytest.mark.parametrize(("nodes", "chosen"), [([HEAD, NODE, GPUS, GONE], NODE), ([HEAD, GPUS], HEAD), ([HEAD], HEAD)])
def test_what_needs_no_gpu_keeps_no_node_with_one(
    nodes: list[dict[str, Any]], chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, *nodes)
    placed = resources.without_gpu()
    assert (placed.node_id, placed.soft) == (chosen["NodeID"], True)


@pytest.mark.parametrize(("here", "workers", "threads"), [(GPUS, 8, 4), (GPUS, 2, 8), (NODE, 1, 2), (NODE, 4, 1)])
def test_a_worker_has_its_share_of_the_node_on_which_it_is(
    here: dict[str, Any], workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, HEAD, NODE, GPUS, here=here)
    assert resources.threads_here(workers) == threads
