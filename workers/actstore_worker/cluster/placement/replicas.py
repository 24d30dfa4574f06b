"""Model replicas as Ray Serve counts them."""

from dataclasses import dataclass

from ray import serve

from actstore_worker.cluster.placement.resources import gpus_most
from actstore_worker.settings import WorkerSettings

APPLICATION, MODELS = "actstore", "models"


@dataclass(frozen=True)
class ReplicaCounts:
    """`wanted` are those that Serve keeps or starts; `running` those that answer."""

    wanted: int = 0
    running: int = 0


NO_REPLICAS = ReplicaCounts()


def replica_counts() -> ReplicaCounts:
    """Asks Serve, in a few milliseconds. None are there before the application is."""
    application = serve.status().applications.get(APPLICATION)
    models = application and application.deployments.get(MODELS)
    if not models:
        return NO_REPLICAS
    states = models.replica_states
    return ReplicaCounts(sum(states.values()) - states.get("STOPPING", 0), states.get("RUNNING", 0))


def running_replicas() -> int:
    return replica_counts().running


def most_replicas(settings: WorkerSettings) -> int:
    """How many there may be: no more than GPUs, if there may be any."""
    limits = settings.ray
    return max(1, limits.model_replicas_min, min(limits.model_replicas, gpus_most(settings) or limits.model_replicas))
