"""Answers that were kept: given to the same request and to no other, and never where they are not whole."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from actstore_api.records.patching import PromptPair, RunSweep, Screen, SweepResult
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import ActstoreError, NotThere, StoreError
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import Turns, share
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.serving.answer_cache import AnswerCache
from actstore_worker.patching.serving.sweeps import Served, Sweeps
from actstore_worker.patching.updates import NOTHING_FINISHED, CheckedCells, Finished, SweepUpdate
from tests.made_models.random_models import save_model
from tests.worker.patching.sweeping import assert_same

PAIR = PromptPair("When Mary and John went , Mary gave", "When Mary and John went , John gave", "John", "Mary")
REQUEST = RunSweep(ModelReference("neox"), (PAIR,), sites=("resid_pre", "z"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "neox", "neox")
    return load_model(ModelCatalog((folder,)).find_model("neox"), device=torch.device("cpu"))


@pytest.fixture
def bucket(tmp_path: Path) -> LocalBucket:
    return LocalBucket(tmp_path)


def no_sae(name: str) -> Any:
    raise NotThere(f"there is no SAE {name}", reason="SAE_NOT_FOUND", field="sae", value=name)


class Replica:
    """A process that serves one model, from a bucket that others use too."""

    def __init__(self, model: LanguageModel, bucket: LocalBucket, limits: PatchingLimits | None = None) -> None:
        supplies, limits = Supplies(bucket, no_sae), limits or PatchingLimits()
        self.sweeps, self.kept = Sweeps(limits, supplies), AnswerCache(supplies, limits)
        self.served: Served = self.sweeps.serve(share(model, Turns()))

    def ask(self, request: RunSweep, finished: Finished = NOTHING_FINISHED) -> tuple[pa.Table, SweepResult]:
        async def everything() -> list[SweepUpdate]:
            return [update async for update in self.sweeps.run(self.served, request, finished)]

        return cells_and_end(asyncio.run(everything()))

    @property
    def token_layers(self) -> float:
        return self.served.kernels.fast.count.computed


def cells_and_end(updates: Sequence[SweepUpdate]) -> tuple[pa.Table, SweepResult]:
    *_, end = updates
    assert isinstance(end, SweepResult)
    return pa.concat_tables(update.rows for update in updates if isinstance(update, CheckedCells)), end


@pytest.mark.parametrize("request_", [REQUEST, replace(REQUEST, screen=Screen(5))])
def test_the_same_request_has_the_same_answer_from_another_replica_at_no_cost(
    model: LanguageModel, bucket: LocalBucket, request_: RunSweep
) -> None:
    cells, end = Replica(model, bucket).ask(request_)
    other = Replica(model, bucket)
    kept, kept_end = other.ask(request_)
    assert other.token_layers == 0
    assert kept.schema.equals(cells.schema)
    assert kept.equals(cells)
    assert kept_end == replace(end, audit=replace(end.audit, cached=True))
    assert not end.audit.cached
    assert kept_end.tokens.schema.equals(end.tokens.schema)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": (1,)},
        {"directions": ("noise",)},
        {"source": "zero"},
        {"pairs": (replace(PAIR, clean_answer="went"),)},
        {"prepend_bos": False},
        {"receivers": ("k.1",)},
        {"fresh": True},
    ],
)
def test_another_request_is_computed(model: LanguageModel, bucket: LocalBucket, change: dict[str, Any]) -> None:
    replica = Replica(model, bucket)
    replica.ask(REQUEST)
    before = replica.token_layers
    _, end = replica.ask(replace(REQUEST, **change))
    assert replica.token_layers > before
    assert not end.audit.cached


@pytest.mark.parametrize("field", ["weights_sha256", "model_config", "tokenizer_sha256", "dtype"])
def test_another_model_of_that_name_has_another_key(model: LanguageModel, bucket: LocalBucket, field: str) -> None:
    kept = Replica(model, bucket).kept
    key = kept.key(model, REQUEST, "resumed")
    assert key == kept.key(model, replace(REQUEST, fresh=True), "resumed")
    assert kept.key(replace(model, **{field: "other"}), REQUEST, "resumed") != key
    assert kept.key(model, REQUEST, "full") != key
    other_limits = Replica(model, bucket, PatchingLimits(audited_cells=5)).kept
    assert other_limits.key(model, REQUEST, "resumed") != key


def test_what_will_be_refused_has_no_key_and_is_refused_as_ever(model: LanguageModel, bucket: LocalBucket) -> None:
    replica = Replica(model, bucket)
    request = replace(REQUEST, sites=(), sae="nobody")
    assert replica.kept.key(model, request, "resumed") is None
    with pytest.raises(ActstoreError) as refusal:
        replica.ask(request)
    assert refusal.value.reason == "SAE_NOT_FOUND"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _lie(path: Path) -> None:
    """Well-formed, and not what was written."""
    record = json.loads(path.read_text())
    record["record"]["clean_logit_difference"] = 7.0
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("*/cells.parquet", _cut),
        ("*/cells.parquet", _change),
        ("*/tokens.parquet", Path.unlink),
        ("answer.json", _cut),
        ("answer.json", _lie),
        ("answer.json", lambda path: path.write_text("[]")),
    ],
)
def test_an_answer_that_is_not_whole_is_computed_again_and_takes_its_place(
    model: LanguageModel, bucket: LocalBucket, pattern: str, harm: Callable[[Path], object]
) -> None:
    replica = Replica(model, bucket)
    cells, end = replica.ask(REQUEST)
    (folder,) = (Path(bucket.address) / "sweeps").iterdir()
    (path,) = folder.glob(pattern)
    harm(path)
    assert [finding.kind for finding in check_runs(bucket).findings if finding.key.endswith("answer.json")] == [
        "orphan"
    ]
    found, found_end = replica.ask(REQUEST)
    assert found.equals(cells)
    assert found_end == end
    assert not found_end.audit.cached
    assert replica.ask(REQUEST)[1].audit.cached
    assert check_runs(bucket).findings == ()


def test_what_is_not_whole_is_removed_as_orphans_are(model: LanguageModel, bucket: LocalBucket) -> None:
    Replica(model, bucket).ask(REQUEST)
    (folder,) = (Path(bucket.address) / "sweeps").iterdir()
    bucket.put(f"sweeps/{folder.name}/0123/cells.parquet", b"of a writer that came second")
    verdict = check_runs(bucket)
    assert [finding.kind for finding in verdict.findings] == ["orphan"]
    assert verdict.sound
    assert [finding.kind for finding in check_runs(bucket, remove_orphans=True).findings] == ["removed"]
    (answer,) = folder.glob("answer.json")
    _cut(answer)
    assert {finding.kind for finding in check_runs(bucket, remove_orphans=True).findings} == {"removed"}
    assert bucket.keys("sweeps") == []
    assert check_runs(bucket).findings == ()


def test_of_two_writers_the_first_stays(model: LanguageModel, bucket: LocalBucket) -> None:
    replica = Replica(model, bucket)
    replica.ask(REQUEST)
    before = bucket.keys("sweeps")
    key = before[0].split("/")[1]
    found = replica.kept.find(key, NOTHING_FINISHED)
    cells, end = cells_and_end(found)
    replica.kept.keep(key, [cells.slice(1)], end, fresh=False)
    assert bucket.keys("sweeps") == before
    replica.kept.keep(key, [cells.slice(1)], end, fresh=True)
    assert cells_and_end(replica.kept.find(key, NOTHING_FINISHED))[0].num_rows == cells.num_rows - 1
    assert len(bucket.keys("sweeps")) == len(before)


def test_an_answer_over_the_limit_is_not_kept(model: LanguageModel, bucket: LocalBucket) -> None:
    replica = Replica(model, bucket, PatchingLimits(kept_bytes=1000))
    replica.ask(REQUEST)
    assert bucket.keys("sweeps") == []
    assert not replica.ask(REQUEST)[1].audit.cached


def test_a_kept_answer_goes_on_where_its_reader_was_cut_off(model: LanguageModel, bucket: LocalBucket) -> None:
    replica = Replica(model, bucket)
    cells, end = replica.ask(REQUEST)
    begun = Finished(cells.slice(0, 10), provenance=end.provenance)
    rest, end = replica.ask(REQUEST, begun)
    assert rest.equals(cells.slice(10))
    assert end.audit.cached


@pytest.mark.parametrize("request_", [REQUEST, replace(REQUEST, fresh=True)])
def test_a_sweep_does_not_go_on_with_other_weights(
    model: LanguageModel, bucket: LocalBucket, request_: RunSweep
) -> None:
    """Its process died, and the model's files were written again before another one took it up."""
    cells, end = Replica(model, bucket).ask(REQUEST)
    before = replace(end.provenance, weights_sha256="of before")
    with pytest.raises(ActstoreError, match="start it again") as refusal:
        Replica(model, bucket).ask(request_, Finished(cells.slice(0, 10), provenance=before))
    assert refusal.value.reason == "WORKERS_UNAVAILABLE"


def test_an_estimate_says_that_an_answer_is_kept(model: LanguageModel, bucket: LocalBucket) -> None:
    replica = Replica(model, bucket)

    def estimate(request: RunSweep) -> tuple[bool, bool]:
        found = asyncio.run(replica.sweeps.estimate(replica.served, request))
        return found.cached, found.seconds == 0

    assert estimate(REQUEST) == (False, False)
    replica.ask(REQUEST)
    assert estimate(REQUEST) == (True, True)
    assert estimate(replace(REQUEST, fresh=True)) == (False, False)


class Broken(LocalBucket):
    """A store that fails when it is asked for what was kept: no real one does so at a word."""

    def get(self, key: str) -> bytes:
        raise StoreError(f"no {key}")

    def put(self, key: str, data: bytes) -> None:
        raise StoreError(f"no {key}")


def test_a_store_that_fails_costs_no_answer(model: LanguageModel, bucket: LocalBucket, tmp_path: Path) -> None:
    expected, _ = Replica(model, bucket).ask(REQUEST)
    replica = Replica(model, Broken(tmp_path))
    for _ in range(2):
        found, end = replica.ask(REQUEST)
        assert_same(found, expected)
        assert not end.audit.cached


def test_what_is_kept_is_of_the_tokens_that_were_read(
    model: LanguageModel, bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that other code makes other tokens of is another request: a BOS more, here."""
    replica = Replica(model, bucket)
    replica.ask(REQUEST)
    monkeypatch.setattr("actstore_worker.models.prompts.with_bos", lambda _model, ids, _prepend: (0, 0, *ids))
    other = Replica(model, bucket)
    other.ask(REQUEST)
    assert other.token_layers > 0
