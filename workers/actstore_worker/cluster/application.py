"""The application of Ray Serve: the gateway before the model replicas.

`build` is its import path in a configuration of Serve, with which a cluster runs the workers without a process that
starts them: `actstore_worker.cluster.application:build`.
"""

import os
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe
from actstore_worker.cluster.gateway import GatewayIngress
from actstore_worker.cluster.joining.session import on_head
from actstore_worker.cluster.joining.strangers import check_strangers_are_refused
from actstore_worker.cluster.models import model_replica
from actstore_worker.cluster.placement.replicas import MODELS, most_replicas
from actstore_worker.cluster.placement.resources import uses_gpus
from actstore_worker.settings import WorkerSettings, read_environment


def build(_arguments: dict[str, Any]) -> serve.Application:
    """Builds the application from the environment of the cluster's nodes, which all have the same. Ray calls this.

    Errors: SettingsError as at every start; ActstoreError for a store that cannot be used.
    """
    settings = read_environment(os.environ)
    check_strangers_are_refused(settings.ray_isolated_by)
    probe(open_bucket(settings.store, settings.s3))
    return application(settings)


def application(settings: WorkerSettings) -> serve.Application:
    limits, on_gpus = settings.ray, uses_gpus(settings)
    models = serve.deployment(
        model_replica(limits.models_per_replica),
        name=MODELS,
        max_ongoing_requests=limits.sweeps_per_replica,
        autoscaling_config=AutoscalingConfig(
            min_replicas=limits.model_replicas_min,
            max_replicas=most_replicas(settings),
            target_ongoing_requests=1,
            downscale_delay_s=limits.replica_idle_seconds,
        ),
        ray_actor_options={"num_cpus": 0, "num_gpus": limits.replica_gpus if on_gpus else 0},
    )
    gateway = serve.deployment(
        GatewayIngress,
        name="gateway",
        max_ongoing_requests=limits.gateway_calls,
        ray_actor_options={"num_cpus": 0, "resources": on_head()},
    )
    return gateway.bind(settings, models.bind(settings))
