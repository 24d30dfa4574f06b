"""Every actor, deployment, resource and queue of the workers, on one page; the only module that imports Ray.

    gRPC ── proxy ── gateway (Serve, ingress) ──┬── coordinator (named, detached actor) ─┬─ capture workers (actors)
                                                │                                        └─ parts of indexes (tasks)
                                                └── models (Serve, multiplexed, autoscaled)
    a sweep of trainings ── tasks, side by side

What they do is in classes that know nothing of Ray; here they are only placed, named and called.
"""

import asyncio
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, HTTPOptions, gRPCOptions

from actstore_api.records.capture import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    GetCaptureTotalsAnswer,
    ListSourcesAnswer,
)
from actstore_api.records.patching import RunSweep, SweepCells, SweepEstimate, SweepProgress, SweepResult
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket, open_files
from actstore_storage.bucket.probe import probe
from actstore_storage.errors import ActstoreError
from actstore_storage.features.segments import Part
from actstore_storage.upkeep.merging import Merge
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.capture.merging import Merging, write_part
from actstore_worker.capture.plan import PlanSettings
from actstore_worker.capture.preparing import Preparing
from actstore_worker.capture.shards.worker import TASKS, CaptureWorker, ShardReport, Task
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.catalog.listing import find_sources
from actstore_worker.cluster.replica import OpenModel, Replica
from actstore_worker.cluster.sockets import (
    Claim,
    check_cluster,
    check_port_is_free,
    free_port,
    no_cluster,
    port_of_running_serve,
    wait_until_answering,
)
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.answering import Answer as LiveAnswer
from actstore_worker.live.answering import NamesModel, Question
from actstore_worker.patching.legs import Finished
from actstore_worker.patching.serving.failover import ProcessDied, going_on
from actstore_worker.patching.serving.sweeps import Served
from actstore_worker.patching.sweep import SweepUpdate
from actstore_worker.sae.stored import StoredSaes
from actstore_worker.settings import RayLimits, SettingsError, WorkerSettings
from actstore_worker.wire.gateway import Gateway
from actstore_worker.wire.proxy_streams import add_services

NAMESPACE = APPLICATION = "actstore"
COORDINATOR = "coordinator"
_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.05
_REMOVE_SECONDS = 10.0
# How long the claim of a process that was killed may outlive it.
_CLAIM, _CLAIM_SECONDS = "deployment", 10.0
_SERVICES = f"{add_services.__module__}.{add_services.__name__}"

# A job of a sweep whose process died goes on from its checkpoint so often.
JOB_RETRIES = 3
_LISTEN_SECONDS = 1.0

Answer = TypeVar("Answer")
Job = TypeVar("Job")
Done = TypeVar("Done")
Say = Callable[[Any], object]


@contextmanager
def running(
    settings: WorkerSettings, connected: Callable[[], None], waits: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """The workers, up and answering at the yielded address, down again when the block ends.

    `connected` is called once Ray is there, and has replaced this process's signal handlers. `waits` hears what is
    waited for next.

    Errors: StoreError for a bucket that cannot be trusted; SettingsError for what the cluster cannot hold.
    """
    waits("the store")
    probe(open_bucket(settings.store, settings.s3))
    waits("Ray")
    with _ray(settings.ray_address, settings.ray.object_store_bytes):
        connected()
        with _only_deployment(settings):
            running_port = _port_of_running_serve(settings)
            waits("the coordinator")
            with _coordinator(settings), _serve(settings, running_port, waits) as port:
                waits("the gateway")
                _deploy(settings)
                wait_until_answering(f"{_LOOPBACK}:{port}", APPLICATION, settings)
                yield f"{_LOOPBACK}:{port}"


def side_by_side(
    work: Callable[[Job, Say], Done], jobs: Sequence[Job], said: Callable[[Any], None], ray_address: str | None
) -> list[Done | Exception]:
    """`work` on each job, all at once or as the cluster has room, each with an equal share of it; `said` hears what
    they say meanwhile. A job that fails ends no other; one whose process dies is tried again.
    """
    with _ray(ray_address, RayLimits().object_store_bytes):
        ear = ray.remote(_Ear).options(num_cpus=0).remote()
        cpus = max(1, int(ray.cluster_resources()["CPU"]) // len(jobs))
        gpus = min(1.0, _gpu_count() / len(jobs))
        task = ray.remote(_heard).options(num_cpus=cpus, num_gpus=gpus, max_retries=JOB_RETRIES)
        references = [task.remote(work, job, ear) for job in jobs]
        waiting = references
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LISTEN_SECONDS)
            for what in ray.get(ear.take.remote()):
                said(what)
        return [_outcome(reference) for reference in references]


class _Ear:
    """What tasks say, until it is taken."""

    def __init__(self) -> None:
        self._said: list[Any] = []

    def say(self, what: Any) -> None:
        self._said.append(what)

    def take(self) -> list[Any]:
        said, self._said = self._said, []
        return said


def _heard(work: Callable[[Job, Say], Done], job: Job, ear: Any) -> Done:
    """Returns once the ear has heard the last word, and so all before it: nobody listens after that."""
    words: list[Any] = []

    def say(what: Any) -> None:
        words[:] = [ear.say.remote(what)]

    try:
        return work(job, say)
    finally:
        with suppress(RayError):  # what is done is done, whoever hears of it
            ray.get(words)


def _outcome(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        return error.cause
    except RayError:
        return _unavailable(f"its process died {JOB_RETRIES + 1} times")


@contextmanager
def _ray(address: str | None, object_store_bytes: int) -> Iterator[None]:
    if address is not None:
        _join(address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # A short path of our own: Ray's socket names must fit into 107 bytes, and nothing of it is wanted afterwards.
    folder = Path(tempfile.mkdtemp(prefix="actstore-", dir="/tmp"))
    try:
        # Ray's workers import from the folder that it is started in, which is a user's: his random.py is not meant.
        with chdir(folder):
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                _temp_dir=str(folder),
            )
        yield
    finally:
        ray.shutdown()
        _remove(folder)


def _join(address: str) -> None:
    check_cluster(address)
    try:
        ray.init(address=address, namespace=NAMESPACE)
    except (RuntimeError, ConnectionError, ValueError, SystemExit) as error:  # the last where it has given up
        raise no_cluster(address, f"Ray cannot join it ({error})") from error


@contextmanager
def _only_deployment(settings: WorkerSettings) -> Iterator[None]:
    """On a cluster that is not ours: its coordinator and its application have one name each, so another deployment's
    would be taken for ours. The claim is an actor that ends with this process, however it ends.

    Errors: SettingsError where another deployment runs.
    """
    if settings.ray_address is None:
        yield
        return
    claim, give_up = None, time.monotonic() + _CLAIM_SECONDS
    what = f"workers over {settings.store}, process {os.getpid()} on {socket.gethostname()}"
    while claim is None:
        try:
            claim = ray.remote(Claim).options(name=_CLAIM, num_cpus=0).remote(what)
        except ValueError:  # of a process that was killed it takes Ray a moment to end it
            if time.monotonic() > give_up:
                message = f"on the Ray cluster at {settings.ray_address} there are already {_claimed()}; it has room"
                raise SettingsError(f"{message} for one deployment: end that one, or join another cluster") from None
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        ray.kill(claim)


def _claimed() -> str:
    with suppress(RayError, ValueError):
        return str(ray.get(ray.get_actor(_CLAIM, NAMESPACE).what.remote(), timeout=_CLAIM_SECONDS))
    return "other workers"


def _remove(folder: Path) -> None:
    """Processes of a Ray that was shut down end a moment later, and may write into their folder while it is removed."""
    give_up = time.monotonic() + _REMOVE_SECONDS
    while folder.exists() and time.monotonic() < give_up:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_POLL_SECONDS)


@contextmanager
def _coordinator(settings: WorkerSettings) -> Iterator[None]:
    """In the place of one that a killed process left: that one has the settings of then."""
    _stop_coordinator()
    ray.remote(_CoordinatorActor).options(
        name=COORDINATOR,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
    ).remote(settings, _worker_count(settings), _gpu_count())
    try:
        yield
    finally:
        _stop_coordinator()


def _stop_coordinator() -> None:
    """Returns once its name is free."""
    with suppress(ValueError):  # it is not there
        while True:
            ray.kill(ray.get_actor(COORDINATOR, NAMESPACE))
            time.sleep(_POLL_SECONDS)


def _port_of_running_serve(settings: WorkerSettings) -> int | None:
    """None where none runs. Errors: SettingsError for one that cannot be taken."""
    client = _serve_client()
    if client is None:
        return None
    options = client.get_serve_details().get("grpc_options") or {}  # as its REST API has them
    return port_of_running_serve({"port": gRPCOptions().port} | options, _SERVICES, settings)


def _serve_client() -> Any:
    return serve.context._get_global_client(raise_if_no_controller_running=False)


@contextmanager
def _serve(settings: WorkerSettings, running_port: int | None, waits: Callable[[str], None]) -> Iterator[int]:
    """The port of Serve's gRPC proxy. A Serve that runs already is taken as it is."""
    waits("Ray Serve")
    try:
        yield _start_serve(settings.gateway_port) if running_port is None else running_port
    finally:
        _end_serve(settings, ours=running_port is None)


def _end_serve(settings: WorkerSettings, *, ours: bool) -> None:
    """On a cluster that is not ours, what others run on it goes on."""
    if settings.ray_address is not None and _serve_client() is not None:
        serve.delete(APPLICATION)
        ours = ours and not serve.status().applications
    if ours:
        serve.shutdown()


def _start_serve(wanted_port: int) -> int:
    if wanted_port:
        check_port_is_free(wanted_port)
    port = wanted_port or free_port()
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=_LOOPBACK, port=free_port(but=port)),
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[_SERVICES], enable_reflection=False),
    )
    return port


def _deploy(settings: WorkerSettings) -> None:
    limits = settings.ray
    models = serve.deployment(
        _model_replica(limits.models_per_replica),
        name="models",
        max_ongoing_requests=limits.sweeps_per_replica,
        autoscaling_config=AutoscalingConfig(
            min_replicas=1,
            max_replicas=min(limits.model_replicas, _gpu_count() or limits.model_replicas),
            target_ongoing_requests=1,
        ),
        ray_actor_options={"num_cpus": 0, "num_gpus": limits.replica_gpus if _gpu_count() else 0},
    )
    gateway = serve.deployment(
        _GatewayIngress,
        name="gateway",
        max_ongoing_requests=limits.gateway_calls,
        ray_actor_options={"num_cpus": 0},
    )
    serve.run(gateway.bind(settings, models.bind(settings)), name=APPLICATION, route_prefix=f"/{APPLICATION}")


class _CoordinatorActor(Coordinator):
    """Owns the capture workers: they end with it, and Ray's restart of it begins with new ones."""

    def __init__(self, settings: WorkerSettings, worker_count: int, gpu_count: int) -> None:
        bucket = open_bucket(settings.store, settings.s3)
        catalog = _catalog(settings, bucket)
        stores = tuple(open_files(address, settings.s3) for address in settings.dataset_stores)
        places = DatasetPlaces(settings.dataset_folders, stores, settings.allow_hub)
        plan_settings = PlanSettings(places, device="cuda" if gpu_count else "cpu")
        resources = {"num_cpus": 1, "num_gpus": settings.ray.worker_gpus if gpu_count else 0}
        threads = max(1, int(ray.cluster_resources()["CPU"]) // worker_count)
        worker = ray.remote(_CaptureActor).options(max_restarts=-1, max_concurrency=TASKS + 1, **resources)
        self._new_worker: Callable[[], _RemoteWorker] = lambda: _RemoteWorker(
            worker.remote(settings, threads), settings.coordinator.answer_seconds
        )
        super().__init__(
            Preparing(bucket, catalog, plan_settings),
            [self._new_worker() for _ in range(worker_count)],
            settings.coordinator,
            Merging(bucket, _RemoteWriter(settings), settings.merging),
        )
        self._places = catalog, places
        self._start(self._look_after_workers(settings))

    async def sources(self) -> ListSourcesAnswer:
        return await asyncio.to_thread(find_sources, *self._places)

    async def _look_after_workers(self, settings: WorkerSettings) -> None:
        """Finish what a coordinator before this one left, and use every place that joins the cluster. Ray itself puts a
        worker that died where there is room for it.
        """
        resumed = False
        self._start(self._merging.resume())
        while True:
            resumed = resumed or await self.resume()
            await asyncio.sleep(settings.coordinator.pool_seconds)
            missing = _worker_count(settings) - len(self._workers)
            self.add_workers([self._new_worker() for _ in range(missing)])


class _CaptureActor(CaptureWorker):
    """A thread for each task, and one that can be told to stop."""

    def __init__(self, settings: WorkerSettings, threads: int) -> None:
        torch.set_num_threads(threads)
        super().__init__(open_bucket(settings.store, settings.s3), _device(), settings.sae_cache)

    def ready(self) -> int:
        """Its process. Answers once the actor is (again) up."""
        return os.getpid()


class _RemoteWorker:
    """A capture actor as the coordinator sees it."""

    def __init__(self, actor: Any, answer_seconds: float) -> None:
        self._actor, self._answer_seconds = actor, answer_seconds

    async def capture(self, task: Task) -> ShardReport:
        # Ray restarts an actor that died; a call that is tried again waits for that, a capture must not run twice.
        try:
            # A place may be left from before its actor died; without this the shard would wait for another node.
            await asyncio.wait_for(self.ready(), self._answer_seconds)
        except TimeoutError:
            raise _unavailable("a worker process is not there; another one may be tried") from None
        return await _answer(self._actor.capture.remote(task))

    async def ready(self) -> None:
        await _answer(self._actor.ready.options(max_task_retries=-1).remote())

    async def flops(self) -> float:
        return await _answer(self._actor.flops.remote())

    async def interrupt(self, attempt: str) -> None:
        await _answer(self._actor.interrupt.remote(attempt))


class _RemoteWriter:
    """Parts of merged indexes as tasks anywhere in the cluster. They ask for no CPU, for capture workers may have taken
    them all: how many run at once is the coordinator's to limit.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._store, self._s3 = settings.store, settings.s3
        self._task = ray.remote(write_part).options(num_cpus=0, scheduling_strategy="SPREAD")

    async def write(self, merge: Merge, number: int) -> Part:
        return await _answer(self._task.remote(self._store, self._s3, merge, number))


class _GatewayIngress(Gateway):
    def __init__(self, settings: WorkerSettings, models: serve.handle.DeploymentHandle) -> None:
        super().__init__(settings.gateway_token, _RemoteCoordinator(), _RemoteModels(models))


class _RemoteCoordinator:
    """Looked up for each call, so that a coordinator that was replaced is found again."""

    async def submit(self, request: CaptureSpecification) -> str:
        return await _answer(self._actor.submit.remote(request))

    async def estimate(self, request: CaptureSpecification) -> CaptureEstimate:
        return await _answer(self._actor.estimate.remote(request))

    async def sources(self) -> ListSourcesAnswer:
        return await _answer(self._actor.sources.remote())

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        return await _answer(self._actor.progress_after.remote(run, version))

    async def cancel(self, run: str) -> CaptureProgress:
        return await _answer(self._actor.cancel.remote(run))

    async def totals(self) -> GetCaptureTotalsAnswer:
        return await _answer(self._actor.totals.remote())

    @property
    def _actor(self) -> Any:
        try:
            return ray.get_actor(COORDINATOR, NAMESPACE)
        except ValueError:
            raise _unavailable("the coordinator is not running") from None


class _RemoteModels:
    def __init__(self, handle: serve.handle.DeploymentHandle) -> None:
        self._handle = handle

    async def ask(self, question: Question) -> LiveAnswer:
        """Goes to a replica that has the model, if one has; a question that names none goes to any."""
        model_id = _model_id(question.model) if isinstance(question, NamesModel) else ""
        response = self._handle.options(multiplexed_model_id=model_id).ask.remote(question)
        try:
            return await _answer(response)
        finally:
            response.cancel()

    async def estimate(self, request: RunSweep) -> SweepEstimate:
        """Goes to a replica that has the model, if one has."""
        model_id = _model_id(request.model)
        response = self._handle.options(multiplexed_model_id=model_id).estimate.remote(request)
        try:
            return await _answer(response)
        finally:
            response.cancel()

    def run(self, request: RunSweep) -> AsyncIterator[SweepProgress | SweepCells | SweepResult]:
        """Likewise; and on to another one, should that die."""
        return going_on(lambda finished: self._run(request, finished))

    async def _run(self, request: RunSweep, finished: Finished) -> AsyncGenerator[SweepUpdate, None]:
        model_id = _model_id(request.model)
        updates = self._handle.options(stream=True, multiplexed_model_id=model_id).sweep.remote(request, finished)
        try:
            async for update in updates:
                yield update
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:
            raise ProcessDied from None
        finally:
            updates.cancel()


def _model_id(model: ModelReference) -> str:
    return json.dumps([model.name, model.revision])


def _model_replica(models_per_replica: int) -> type:
    """The deployment's class; Serve wants the number of models at the decorator."""

    class ModelReplica:
        def __init__(self, settings: WorkerSettings) -> None:
            bucket = open_bucket(settings.store, settings.s3)
            catalog = _catalog(settings, bucket)
            self._replica = Replica(catalog, bucket, _device(), settings.live, settings.patching)

        @serve.multiplexed(max_num_models_per_replica=models_per_replica)  # type: ignore[untyped-decorator]
        async def model(self, model_id: str) -> OpenModel:
            return await asyncio.to_thread(self._replica.open, *json.loads(model_id))

        async def sweep(self, request: RunSweep, finished: Finished) -> AsyncIterator[SweepUpdate]:
            served = await self._served(serve.get_multiplexed_model_id())
            async with aclosing(self._replica.sweeps.run(served, request, finished)) as updates:
                async for update in updates:
                    yield update

        async def estimate(self, request: RunSweep) -> SweepEstimate:
            served = await self._served(serve.get_multiplexed_model_id())
            return await self._replica.sweeps.estimate(served, request)

        async def ask(self, question: Question) -> LiveAnswer:
            named = await asyncio.to_thread(self._replica.live.model_of, question)
            served = None if named is None else await self._served(_model_id(named))
            model = None if served is None else served.model
            stop = threading.Event()
            try:
                return await asyncio.to_thread(self._replica.live.answer, question, model, stop)
            finally:
                stop.set()  # a caller who went away leaves no passes to be run

        async def _served(self, model_id: str) -> Served:
            """For Serve a model is one thing, whatever its files are by now."""
            return await asyncio.to_thread((await self.model(model_id)).get)

    return ModelReplica


async def _answer(reference: Awaitable[Answer]) -> Answer:
    """Errors as they were raised over there; WORKERS_UNAVAILABLE where the process died."""
    try:
        return await reference
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError:
        raise _unavailable("a worker process died; the work can be tried again") from None


def _unavailable(message: str) -> ActstoreError:
    return ActstoreError(message, reason="WORKERS_UNAVAILABLE")


def _catalog(settings: WorkerSettings, bucket: Bucket) -> ModelCatalog:
    return ModelCatalog(settings.model_folders, settings.allow_hub, StoredSaes(bucket, settings.sae_cache))


def _worker_count(settings: WorkerSettings) -> int:
    """As many as were asked for; else one a GPU, or one a node without.

    Errors: SettingsError where that many can never be placed.
    """
    gpus = _gpu_count()
    room = gpus or int(ray.cluster_resources()["CPU"])
    nodes = sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())
    count = settings.capture_workers or gpus or nodes
    if count > room:
        raise SettingsError(f"ACTSTORE_CAPTURE_WORKERS is {count}; this cluster has room for {room}")
    return count


def _gpu_count() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
