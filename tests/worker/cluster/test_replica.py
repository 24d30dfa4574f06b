"""A model whose files are written again is another model of the same name: who is told, and who keeps the old one."""

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
import torch

from actstore_api.records.model import GetTextLens
from actstore_api.records.patching import PromptPair, RunSweep, SweepResult
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import ActstoreError, BadRequest, NotThere
from actstore_storage.runs.opening import open_run
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.shards.report import ShardReport
from actstore_worker.capture.shards.tasks import Task
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.models import loading
from actstore_worker.models.loading import describe_model, load_model
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.serving.sweeps import Served
from actstore_worker.patching.updates import NOTHING_FINISHED, CheckedCells, SweepUpdate
from actstore_worker.replica import Replica
from actstore_worker.sae.formats import saelens as format_saelens
from actstore_worker.sae.formats.loading import load_sae
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.small_models import save_gpt2, save_sae, save_tokenizer

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
TEXT = "the cat sat"
SWEEP = RunSweep(
    ModelReference("small"), (PromptPair(TEXT, "the dog sat", "a", "b"),), sites=("resid_pre",), directions=("noise",)
)


class Lab:
    """A replica, one of its models, and weights of that model that are others, of the same size."""

    def __init__(self, folder: Path) -> None:
        self.models, self.model, self.other = folder / "models", folder / "models" / "small", folder / "other"
        save_gpt2(self.model)
        shutil.copytree(self.model, self.other)
        change_weights(self.other / WEIGHTS)
        (folder / "store").mkdir()
        self.bucket, self.catalog = LocalBucket(folder / "store"), ModelCatalog((self.models,))
        self.replica = self.replica_of(self.catalog)

    def replica_of(self, catalog: ModelCatalog) -> Replica:
        return Replica(catalog, self.bucket, CPU, LiveLimits(), PatchingLimits(slice_seconds=1e-6))

    def lens(self, served: Served) -> Any:
        return self.replica.live.answer(GetTextLens(ModelReference("small"), TEXT), served.model, Event())

    def plan(self, folder: Path, **options: Any) -> Plan:
        (folder / "words.txt").write_text(TEXT * 20)
        settings = PlanSettings(DatasetPlaces((folder,)))
        return plan_capture(capture_request("small", "words.txt", "run", **options), self.catalog, settings)


def change_weights(path: Path) -> None:
    """In place: the inode stays, and so does what others have mapped of it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        rest = bytearray(file.read())
        rest[2::4] = bytes(byte ^ 0x40 for byte in rest[2::4])  # a bit of each float32's fraction
        file.seek(path.stat().st_size // 2)
        file.write(rest)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.mark.parametrize("way", ["in place", "renamed", "same size and time"])
def test_weights_that_were_written_again_are_read_again(lab: Lab, way: str) -> None:
    opened = lab.replica.open("small", "")
    old, before = opened.get(), (lab.model / WEIGHTS).stat()
    first = lab.lens(old)
    assert opened.get() is old
    if way == "renamed":
        (lab.other / WEIGHTS).rename(lab.model / WEIGHTS)
    else:
        change_weights(lab.model / WEIGHTS)
    if way == "same size and time":
        os.utime(lab.model / WEIGHTS, ns=(before.st_atime_ns, before.st_mtime_ns))
    new = opened.get()
    second, fresh = lab.lens(new), lab.lens(lab.replica.open("small", "").get())
    assert second.provenance.weights_sha256 == describe_model(lab.catalog.find_model("small")).weights_sha256
    assert second == fresh
    assert not second.tops.equals(first.tops)
    assert lab.lens(old) == first  # of who began with the weights of before


def test_the_old_weights_memory_is_given_back_before_the_new_ones_are_read(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, alive = lab.replica.open("small", ""), []
    old = weakref.ref(opened.get().model._module)

    def load(*given: Any, **options: Any) -> Any:
        alive.append(old() is not None)
        return load_model(*given, **options)

    monkeypatch.setattr("actstore_worker.replica.load_model", load)
    change_weights(lab.model / WEIGHTS)
    gc.disable()  # it must not take Python's search for cycles
    try:
        opened.get()
    finally:
        gc.enable()
    assert alive == [False]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", None),
        ("tokenizer.json", None),
        ("generation_config.json", '{"eos_token_id": [1, 2]}'),
        ("chat_template.jinja", "{{ messages }}"),
    ],
)
def test_any_file_that_decides_is_looked_at(lab: Lab, name: str, text: str | None) -> None:
    opened = lab.replica.open("small", "")
    old = opened.get()
    (lab.model / "README.md").write_text("what it is")
    (lab.model / "events.log").write_text("what its training still writes")
    assert opened.get() is old
    (lab.model / name).write_text((lab.model / name).read_text() + "\n" if text is None else text)
    assert opened.get() is not old


def test_a_revision_and_a_model_of_an_earlier_folder(lab: Lab, tmp_path: Path) -> None:
    """A revision borrows its model's tokenizer; and the first folder with a name wins, whenever it comes."""
    revision, first = lab.model / "revisions" / "step1", tmp_path / "first"
    shutil.copytree(lab.other, revision, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    first.mkdir()
    lab.replica = lab.replica_of(ModelCatalog((first, lab.models)))
    opened, main = lab.replica.open("small", "step1"), lab.replica.open("small", "")
    old, old_main = opened.get(), main.get()
    save_tokenizer(lab.model)
    assert opened.get() is not old
    before = old_main.model.weights_sha256
    shutil.copytree(lab.other, first / "small")
    assert main.get().model.weights_sha256 != before


def test_files_that_are_half_written_are_refused_and_then_read(lab: Lab) -> None:
    opened = lab.replica.open("small", "")
    opened.get()
    whole = (lab.other / WEIGHTS).read_bytes()
    (lab.model / WEIGHTS).write_bytes(whole[:-1000])
    with pytest.raises(ActstoreError) as refusal:
        opened.get()
    assert refusal.value.reason == "MODEL_UNSUPPORTED"
    (lab.model / WEIGHTS).write_bytes(whole)
    assert opened.get().model.weights_sha256 == describe_model(lab.catalog.find_model("small")).weights_sha256
    shutil.rmtree(lab.model)
    with pytest.raises(NotThere):
        opened.get()


def test_what_is_written_while_it_is_read_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the hash would be of one file and the numbers of another."""
    leave = loading._leave_files

    def writing(module: Any) -> None:
        leave(module)
        change_weights(lab.model / WEIGHTS)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "_leave_files", writing)
        with pytest.raises(ActstoreError) as refusal:
            load_model(lab.catalog.find_model("small"), device=CPU)
    assert (refusal.value.reason, refusal.value.details["value"]) == ("FILES_CHANGED", "small")
    assert load_model(lab.catalog.find_model("small"), device=CPU).name == "small"


def test_so_is_an_sae_and_one_that_is_loaded_stays_what_it_is(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_sae(lab.models / "sae", "standard")
    sae = load_sae(folder, "sae")
    before = {name: tensor.clone() for name, tensor in sae.tensors.items()}
    read = format_saelens.read_tensors

    def writing(path: Path, name: str) -> Any:
        found = read(path, name)
        change_weights(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(format_saelens, "read_tensors", writing)
        with pytest.raises(ActstoreError) as refusal:
            load_sae(folder, "sae")
    assert (refusal.value.reason, refusal.value.details["value"]) == ("FILES_CHANGED", "sae")
    assert all(sae.tensors[name].equal(tensor) for name, tensor in before.items())
    assert load_sae(folder, "sae").sha256 != sae.sha256


def swept(updates: list[SweepUpdate]) -> tuple[pa.Table, SweepResult]:
    *_, end = updates
    assert isinstance(end, SweepResult)
    return pa.concat_tables(update.rows for update in updates if isinstance(update, CheckedCells)), end


def test_a_sweep_ends_with_the_weights_that_it_began_with(lab: Lab) -> None:
    opened = lab.replica.open("small", "")
    served = opened.get()
    expected, _ = swept(asyncio.run(sweep(lab, served, replace(SWEEP, fresh=True), lambda _: None)))

    def overwrite(seen: list[SweepUpdate]) -> None:
        if len(seen) == 3:
            change_weights(lab.model / WEIGHTS)
            assert opened.get() is not served

    cells, end = swept(asyncio.run(sweep(lab, served, replace(SWEEP, fresh=True), overwrite)))
    assert end.provenance.weights_sha256 == served.model.weights_sha256
    for name in ("logit_difference", "denoised", "kl"):
        if name in expected.column_names:
            torch.testing.assert_close(torch.tensor(cells[name].to_pylist()), torch.tensor(expected[name].to_pylist()))
    other, other_end = swept(asyncio.run(sweep(lab, opened.get(), SWEEP, lambda _: None)))
    assert not other_end.audit.cached  # what was kept is of the weights of before
    assert other_end.provenance.weights_sha256 != end.provenance.weights_sha256
    assert not other["logit_difference"].equals(cells["logit_difference"])


async def sweep(
    lab: Lab, served: Served, request: RunSweep, meanwhile: Callable[[list[SweepUpdate]], None]
) -> list[SweepUpdate]:
    seen: list[SweepUpdate] = []
    async for update in lab.replica.sweeps.run(served, request, NOTHING_FINISHED):
        seen.append(update)
        meanwhile(seen)
    return seen


@pytest.mark.parametrize("changed", [WEIGHTS, "tokenizer", "sae"])
def test_no_number_of_other_files_gets_into_a_run(lab: Lab, tmp_path: Path, changed: str) -> None:
    """The coordinator plans a run with the files that there are, and a worker reads them later."""
    save_sae(lab.models / "sae", "standard")
    plan = lab.plan(tmp_path, saes=("sae",))
    if changed == WEIGHTS:
        change_weights(lab.model / WEIGHTS)
    elif changed == "tokenizer":
        save_tokenizer(lab.model, bos=False)
    else:
        change_weights(lab.models / "sae" / "sae_weights.safetensors")
    with pytest.raises(BadRequest, match="changed after run"):
        capture_run(plan, lab.bucket, CaptureWorker(lab.bucket, CPU))
    assert not open_run(lab.bucket, "run").commits


def test_a_worker_goes_on_with_the_weights_of_the_plan(lab: Lab, tmp_path: Path) -> None:
    """It has them in memory, whatever becomes of the file."""
    plan = lab.plan(tmp_path, sequences_per_shard=2, dense_sites=("resid_post",))
    assert plan.record.shards_total > 1

    class Meddled(CaptureWorker):
        def capture(self, task: Task[Any]) -> ShardReport:
            report = super().capture(task)
            change_weights(lab.model / WEIGHTS)
            return report

    runs = {"run": CaptureWorker(lab.bucket, CPU), "again": Meddled(lab.bucket, CPU)}
    hashes = []
    for run, worker in runs.items():
        found = capture_run(replace(plan, record=replace(plan.record, run=run)), lab.bucket, worker)
        hashes.append([{name: item.sha256 for name, item in commit.objects.items()} for commit in found.commits])
    assert hashes[0] == hashes[1]


def test_a_hub_model_is_looked_up_when_it_is_loaded_and_not_at_each_question(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is what this machine downloaded last: a newer one, where somebody captured with that."""
    snapshots, asked = [lab.model, lab.other], []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append(options.get("local_files_only", False))
        return str(snapshots[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    opened = lab.replica_of(ModelCatalog((), allow_hub=True)).open("owner/small", "")
    old = opened.get()
    assert asked == [False, True]
    snapshots.reverse()
    assert opened.get().model.weights_sha256 != old.model.weights_sha256
    assert asked == [False, True, True]
