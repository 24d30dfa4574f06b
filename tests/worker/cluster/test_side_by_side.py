"""Every question and every kind of sweep beside every other, on one model of a replica: each answers as it does alone.

Of live questions that is to the bit. Which cells of a sweep share a batch depends on time and on other sweeps, and so
does the last bit of its numbers.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from actstore_api.records.model import (
    AblateSites,
    CompareTokens,
    GetAttention,
    GetInductionScores,
    GetTextLens,
    GetWeightNorms,
    SteerText,
    TokenizeText,
)
from actstore_api.records.patching import PatchSource, PromptPair, RunSweep, Screen, StoredSource, SweepEstimate
from actstore_api.records.sae import AblateDirection, AblateText, CheckSae, EncodeText, FindNeighbors, GetLogitLens
from actstore_api.records.terms import SaeFeature, StoredSample
from actstore_storage.bucket.local import LocalBucket
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.answering import ANSWERS, Question
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.updates import NOTHING_FINISHED, SweepUpdate
from actstore_worker.replica import Replica
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.small_models import D_MODEL, save_gpt2, save_sae
from tests.worker.live.asking import GPT2
from tests.worker.patching.sweeping import assert_same, cells

CPU = torch.device("cpu")
TEXT, RUN = "the cat sat", "stored"
VECTOR = tuple(float(number) for number in range(D_MODEL))
QUESTIONS: dict[str, Question] = {
    "encode": EncodeText(GPT2, "sae", TEXT),
    "lens of a feature": GetLogitLens(GPT2, "sae", (3,), fold_norm=True),
    "deletions": AblateText(GPT2, "sae", 3, TEXT),
    "replacements": AblateText(GPT2, "sae", 3, TEXT, ablation="mean_residual"),
    "a feature taken out": AblateDirection(GPT2, "sae", 3, TEXT),
    "neighbors": FindNeighbors("sae", 3),
    "check": CheckSae(RUN, "sae", 64),
    "what is read": TokenizeText(GPT2, TEXT),
    "attention": GetAttention(GPT2, TEXT, patterns=True),
    "induction": GetInductionScores(GPT2, tokens=5, texts=2),
    "lens": GetTextLens(GPT2, TEXT),
    "steering": SteerText(GPT2, TEXT, VECTOR, site="resid_post.1", strength=2.0, max_new_tokens=4),
    "feature set": SteerText(GPT2, TEXT, direction=SaeFeature("sae", 3), mode="set", strength=2.0, max_new_tokens=4),
    "sites": AblateSites(GPT2, (TEXT, "a dog"), layers=(1,)),
    "means": AblateSites(GPT2, (TEXT, "a dog"), layers=(1,), ablation="mean", stored=StoredSample(RUN, 64)),
    "resampled": AblateSites(GPT2, (TEXT, "a dog"), layers=(1,), ablation="resample"),
    "tokens": CompareTokens(GPT2, TEXT, ("the dog sat",), draws=4),
    "weights": GetWeightNorms(GPT2, layers=(1,), samples=64, text=TEXT, stored=StoredSample(RUN, 64)),
}
PAIR = PromptPair("the cat sat", "the dog sat", "a", "b")
SWEEP = RunSweep(GPT2, (PAIR,), layers=(1,), heads=(1,), only_positions=(8,), directions=("noise",), fresh=True)
SWEEPS = {
    "sites in the residual": replace(SWEEP, sites=("resid_pre", "attn_out", "mlp_out"), source="zero"),
    "sites in heads": replace(SWEEP, sites=("q", "k", "v", "z", "pattern")),
    "stored means": replace(SWEEP, sites=("resid_post",), source="mean", stored=StoredSource(RUN)),
    "stored rows": replace(SWEEP, sites=("resid_post",), source="resample", stored=StoredSource(RUN)),
    "screened": replace(SWEEP, sites=("q", "k"), heads=(), screen=Screen(2, qk_correction=True, grad_drop=True)),
    "paths": replace(SWEEP, layers=(0,), sites=("z",), receivers=("q.2", "mlp_in.2")),
    "features": replace(SWEEP, sites=("features", "embedding"), sae="sae", features=(3, 5)),
}
ESTIMATE = "estimate"
NAMES = [*QUESTIONS, *SWEEPS, ESTIMATE]


class Side:
    """A replica with all that the questions need."""

    def __init__(self, folder: Path) -> None:
        save_gpt2(folder / "models" / "gpt2")
        save_sae(folder / "models" / "sae", "standard")
        (folder / "data").mkdir()
        (folder / "data" / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 8)
        (folder / "store").mkdir()
        catalog, bucket = ModelCatalog((folder / "models",)), LocalBucket(folder / "store")
        request = capture_request("gpt2", "text.txt", RUN, dense_sites=("resid_post.1",), norm_sites=("resid_post",))
        plan = plan_capture(request, catalog, PlanSettings(DatasetPlaces((folder / "data",))))
        capture_run(plan, bucket, CaptureWorker(bucket, CPU))
        patching = PatchingLimits(slice_seconds=0.001, audited_cells=1)
        self.replica = Replica(catalog, bucket, CPU, LiveLimits(tokens_per_slice=64), patching)
        self.served = self.replica.open("gpt2", "").get()

    def ask(self, name: str) -> Any:
        if name == ESTIMATE:
            return asyncio.run(self.replica.sweeps.estimate(self.served, SWEEPS["sites in heads"]))
        if name in SWEEPS:
            return asyncio.run(self._updates(SWEEPS[name]))
        return self.replica.live.answer(QUESTIONS[name], self.served.model, threading.Event())

    async def _updates(self, request: RunSweep) -> list[SweepUpdate]:
        return [update async for update in self.replica.sweeps.run(self.served, request, NOTHING_FINISHED)]


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield Side(tmp_path_factory.mktemp("side"))
    sys.setswitchinterval(interval)


def assert_as_alone(name: str, found: Any, expected: Any) -> None:
    if isinstance(expected, SweepEstimate):
        assert replace(found, seconds=0.0) == replace(expected, seconds=0.0), name
    elif name in SWEEPS:
        assert_same(cells(found), cells(expected))
        assert found[-1].provenance == expected[-1].provenance, name
    else:
        assert found == expected, name


def test_every_kind_is_asked() -> None:
    assert {type(question) for question in QUESTIONS.values()} == set(ANSWERS)
    assert {request.source for request in SWEEPS.values()} == set(get_args(PatchSource))


def test_each_answers_beside_any_other_as_it_does_alone(side: Side) -> None:
    """One goes on being asked while each of the others is, so that they meet at any point of both."""
    with ThreadPoolExecutor(1) as pool:
        alone = {name: side.ask(name) for name in NAMES}

        def go_on(name: str, enough: threading.Event) -> None:
            while not enough.is_set():
                assert_as_alone(name, side.ask(name), alone[name])

        for number, first in enumerate(NAMES):
            enough = threading.Event()
            going_on = pool.submit(go_on, first, enough)
            try:
                for second in NAMES[: number + 1]:
                    assert_as_alone(second, side.ask(second), alone[second])
            finally:
                enough.set()
            going_on.result()
