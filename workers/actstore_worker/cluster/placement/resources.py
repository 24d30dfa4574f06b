"""What the cluster has, what it may get from an autoscaler, and how many workers fit."""

import random
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actstore_worker.errors import SettingsError
from actstore_worker.settings import WorkerSettings


def gpu_count() -> int:
    """GPUs of the whole cluster, now."""
    return int(ray.cluster_resources().get("GPU", 0))


def gpus_most(settings: WorkerSettings) -> int:
    """GPUs that the cluster has, or may get."""
    return max(gpu_count(), settings.ray.gpus_max or 0)


def uses_gpus(settings: WorkerSettings) -> bool:
    """Whether captures and models run on GPUs, which may still have to join the cluster."""
    return settings.device == "cuda" or (settings.device == "auto" and gpus_most(settings) > 0)


def worker_count(settings: WorkerSettings, *, on_gpus: bool) -> int:
    """The most capture workers: as requested; else one per GPU that may come, or one per node if GPUs are not used. At
    least one, whose node may still be on its way.
    """
    if settings.capture_workers:
        return settings.capture_workers
    return max(1, gpus_most(settings) if on_gpus else len(_nodes_with_cpus()))


def worker_room(*, on_gpus: bool) -> int:
    """Capture workers for which the nodes that are there have room."""
    return gpu_count() if on_gpus else int(ray.cluster_resources().get("CPU", 0))


def check_room(settings: WorkerSettings) -> None:
    """Errors: SettingsError if the cluster can never place as many capture workers as were requested."""
    room = gpus_most(settings) or worker_room(on_gpus=False)
    if settings.capture_workers and settings.capture_workers > room:
        raise SettingsError(
            f"ACTSTORE_CAPTURE_WORKERS is {settings.capture_workers}; this cluster has room for {room}"
            " (ACTSTORE_RAY_GPUS_MAX says how many GPUs an autoscaler may bring)"
        )


def without_gpu() -> NodeAffinitySchedulingStrategy:
    """Places work that needs no GPU: an actor or a task keeps its node, even one that takes none of its resources. It
    goes to a node that has CPUs and no GPU, or else to this one.
    """
    nodes = [node["NodeID"] for node in _nodes_with_cpus() if not node["Resources"].get("GPU")]
    chosen = random.choice(nodes) if nodes else ray.get_runtime_context().get_node_id()  # noqa: S311
    return NodeAffinitySchedulingStrategy(chosen, soft=True)


def threads_here(workers: int) -> int:
    """Threads for a capture worker in this process, if there are so many: its share of this node's CPUs."""
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())["Resources"]
    beside = int(here.get("GPU", 0)) or -(-workers // max(1, len(_nodes_with_cpus())))
    return max(1, int(here.get("CPU", 1)) // max(1, min(workers, beside)))


def _nodes_with_cpus() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
