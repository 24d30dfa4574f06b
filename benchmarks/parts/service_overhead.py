"""Measures what a service adds to a sweep of one cell: client, gRPC, service, gRPC, Ray's gateway, a replica, and back.

Each request computes its cell again (`fresh`): no answer comes from the cache, and the time includes writing it there.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import actstore
from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.full import Kernel
from actstore_worker.patching.sweep import fastest_kernel, run_sweep
from tests.service.process import running_service
from tests.worker_process import running_workers

REQUESTS = 20


def service_overhead(folder: Path, model: LanguageModel, pair: PromptPair) -> tuple[float, float]:
    """Median seconds through the service divided by median seconds in process, and their difference in milliseconds.
    `folder` has the model; both sides have loaded it, and have answered before.
    """
    for name in ("store", "data"):
        (folder / name).mkdir()
    kernel = fastest_kernel(model)
    with (
        running_workers(
            folder / "store", model_folder=folder, dataset_folder=folder / "data", log=folder / "workers.log"
        ) as workers,
        running_service(
            ACTSTORE_STORE=str(folder / "store"),
            ACTSTORE_GATEWAY=workers.address,
            ACTSTORE_GATEWAY_TOKEN=workers.token,
            ACTSTORE_ANONYMOUS="reader",
        ) as ready,
        actstore.connect(ready["address"]) as lab,
    ):
        through = _median_seconds(lambda: _through_service(lab, model.name, pair))
    in_process = _median_seconds(lambda: _in_process(model, pair, kernel))
    return through / in_process, 1000 * (through - in_process)


def _median_seconds(ask: Callable[[], object]) -> float:
    ask()
    taken = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return median(taken)


def _through_service(lab: actstore.Lab, name: str, pair: PromptPair) -> None:
    sweep = lab.patch(
        name,
        clean=pair.clean,
        corrupt=pair.corrupt,
        answers=(pair.clean_answer, pair.corrupt_answer),
        sites="z",
        layers=[1],
        heads=[0],
        positions="last",
        directions="denoise",
        prepend_bos=False,
        fresh=True,
        progress=False,
    )
    if len(sweep) != 1 or sweep.audit.cached:
        raise RuntimeError("one cell was to be computed")


def _in_process(model: LanguageModel, pair: PromptPair, kernel: Kernel) -> None:
    request = RunSweep(
        ModelReference(model.name),
        (pair,),
        sites=("z",),
        layers=(1,),
        heads=(0,),
        positions="last",
        directions=("denoise",),
        prepend_bos=False,
    )
    list(run_sweep(model, request, PatchingLimits(), kernel))
