"""Runs jobs as parallel Ray tasks whose progress the caller receives."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from actstore_worker.cluster.joining.session import on_this_node, ray_session
from actstore_worker.cluster.joining.strangers import check_strangers_are_refused
from actstore_worker.cluster.placement.answers import unavailable
from actstore_worker.cluster.placement.resources import gpu_count
from actstore_worker.settings import RayLimits

# How often a job continues from its checkpoint after its process died.
JOB_RETRIES = 3
_LISTEN_SECONDS = 1.0
Job = TypeVar("Job")
Done = TypeVar("Done")
Say = Callable[[Any], object]


def side_by_side(
    work: Callable[[Job, Say], Done],
    jobs: Sequence[Job],
    said: Callable[[Any], None],
    ray_address: str | None,
    isolated_by: str = "",
) -> list[Done | Exception]:
    """Runs `work` on each job, all at once or as the cluster has room, each with an equal share of it. `said` is called
    with their progress. A failing job does not end the others; a job whose process dies is tried again.

    Errors: SettingsError for a cluster that answers strangers, unless `isolated_by` says what keeps them away.
    """
    with ray_session(ray_address, RayLimits().object_store_bytes):
        if ray_address is not None:
            check_strangers_are_refused(isolated_by)
        ear = ray.remote(_Ear).options(num_cpus=0, scheduling_strategy=on_this_node()).remote()
        cpus = max(1, int(ray.cluster_resources()["CPU"]) // len(jobs))
        gpus = min(1.0, gpu_count() / len(jobs))
        task = ray.remote(_heard).options(num_cpus=cpus, num_gpus=gpus, max_retries=JOB_RETRIES)
        references = [task.remote(work, job, ear) for job in jobs]
        waiting = references
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LISTEN_SECONDS)
            for what in ray.get(ear.take.remote()):
                said(what)
        return [_outcome(reference) for reference in references]


class _Ear:
    """Collects messages of tasks until they are taken."""

    def __init__(self) -> None:
        self._said: list[Any] = []

    def say(self, what: Any) -> None:
        self._said.append(what)

    def take(self) -> list[Any]:
        said, self._said = self._said, []
        return said


def _heard(work: Callable[[Job, Say], Done], job: Job, ear: Any) -> Done:
    """Returns once all messages up to the last one have arrived: nothing is read after that."""
    words: list[Any] = []

    def say(what: Any) -> None:
        words[:] = [ear.say.remote(what)]

    try:
        return work(job, say)
    finally:
        with suppress(RayError):  # the job is done, whether or not its last message arrived
            ray.get(words)


def _outcome(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        return error.cause
    except RayError:
        return unavailable(f"its process died {JOB_RETRIES + 1} times")
