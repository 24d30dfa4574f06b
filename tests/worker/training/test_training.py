"""SAEs trained on stored rows: planted dictionaries come back, and what is killed ends as if it had not been."""

import json
import os
import random
import signal
import subprocess
import time
import warnings
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError, BadRequest, Conflict, CorruptObject
from actstore_storage.format.keys import sae_folder, training_checkpoints_folder, training_key
from actstore_storage.registry.saes import SaeModelRecord, find_registered_sae, list_saes, register_sae
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.formats.loading import load_sae
from actstore_worker.sae.stored import StoredSaes
from actstore_worker.training.advice import warnings_of
from actstore_worker.training.feed import RowFeed
from actstore_worker.training.grid import Grid, trainings
from actstore_worker.training.recipe import SPARSITY, Training
from actstore_worker.training.train import Progress, Trained, train
from tests.made_models.small_models import save_sae
from tests.planted_rows import BOS_NORM, SITE, PlantedRows, plant_rows, write_planted_rows, write_planted_shard
from tests.waiting import wait_until
from tests.worker.training.command import Command

CPU = torch.device("cpu")
D, WIDTH = 32, 64
TRIES = 5
# Of each architecture, what makes some features fire and some not after a few steps.
SPARSITIES = {"standard": 0.2, "gated": 0.2, "topk": 3, "batchtopk": 3, "jumprelu": 0.5}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bucket, PlantedRows]:
    """A store that tests train from under names of their own."""
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    return bucket, write_planted_rows(bucket, d=D, features=WIDTH, dtype="bfloat16", shards=5)


def training_of(planted: PlantedRows, /, name: str, architecture: str = "topk", **options: Any) -> Training:
    options = {
        "width": WIDTH,
        "sparsity": SPARSITIES[architecture],
        "rows": 60 * 64,
        "batch_rows": 64,
        "learning_rate": 3e-3,
        "dead_after_steps": 20,
    } | options
    record = planted.record
    return Training(name, record.run, record.specification_sha256, SITE, architecture, **options)


def trained(bucket: Bucket, training: Training, seen: list[Progress] | None = None, **options: Any) -> Trained:
    seen = [] if seen is None else seen
    return train(bucket, training, CPU, seen.append, **{"progress_seconds": 0.0} | options)


def found(bucket: Bucket, name: str, cache: Path) -> tuple[Path, SparseAutoencoder]:
    path = ModelCatalog((), stored=StoredSaes(bucket, cache)).find_sae(name)
    return path, load_sae(path, name)


def test_a_planted_dictionary_comes_back(tmp_path: Path) -> None:
    """512 directions of 256 dimensions, on 5 rows of 512 each: mean max cosine similarity above 0.9."""
    (tmp_path / "store").mkdir()
    bucket = open_bucket(str(tmp_path / "store"))
    rows = write_planted_rows(bucket, d=256, features=512, active=5, sequences=320)
    options = {"width": 512, "sparsity": 5, "rows": 800 * 256, "batch_rows": 256, "learning_rate": 2e-3}
    outcome = trained(bucket, training_of(rows, "planted", dead_after_steps=100, **options), progress_seconds=60.0)
    _, sae = found(bucket, "planted", tmp_path / "cache")
    learnt = sae.decoder / sae.decoder.norm(dim=1, keepdim=True)
    assert float((torch.from_numpy(rows.dictionary) @ learnt.T).max(dim=1).values.mean()) > 0.9
    assert outcome.quality is not None
    assert outcome.quality.fvu is not None
    assert outcome.quality.fvu < 0.2


@pytest.mark.parametrize("architecture", SPARSITY)
def test_each_architecture_is_one_that_saelens_and_we_read_alike(
    architecture: str, planted: tuple[Bucket, PlantedRows], tmp_path: Path
) -> None:
    bucket, rows = planted
    seen: list[Progress] = []
    outcome = trained(bucket, training_of(rows, architecture, architecture), seen)
    assert [progress.step for progress in seen] == list(range(1, 61))
    assert seen[-1].rows == 60 * 64
    assert seen[-1].fvu < seen[0].fvu
    assert [progress.dead is None for progress in seen] == [step <= 20 for step in range(1, 61)]  # of 20 steps
    path, sae = found(bucket, architecture, tmp_path)
    saelens = load_with_saelens(path)
    text = torch.from_numpy(rows.rows[rows.tokens.position > 0][:500])
    expected = saelens.encode(text)
    torch.testing.assert_close(sae.encode(text), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sae.decode(expected, text), saelens.decode(expected), atol=1e-4, rtol=1e-4)
    metadata = json.loads((path / "cfg.json").read_text())["metadata"]
    asked = rows.record.specification
    assert (metadata["model_name"], metadata["hook_name"]) == (asked.model, "blocks.1.hook_resid_post")
    assert (metadata["context_size"], metadata["dataset_path"]) == (asked.context_length, asked.dataset)
    assert (metadata["trained_on_run"], metadata["actstore_version"]) == ("planted", version("actstore"))
    record = find_registered_sae(bucket, architecture)
    assert record == SaeModelRecord(architecture, sae.sha256, sae.architecture, SITE, D, WIDTH, asked.model)
    assert outcome.sha256 == sae.sha256
    check_quality(outcome, sae, rows, path)
    of_sae = [one for one in check_runs(bucket).findings if one.key.startswith(sae_folder(architecture))]
    assert of_sae == []


def load_with_saelens(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports deprecate each other
        from sae_lens import SAE
    return SAE.load_from_disk(str(path))


def check_quality(outcome: Trained, sae: SparseAutoencoder, rows: PlantedRows, path: Path) -> None:
    """The slow way, from all rows of the held-out sequences at once, in float64."""
    text = rows.rows[(rows.tokens.sequence % 50 == 0) & (rows.tokens.position > 0)]
    x = torch.from_numpy(text)
    features = sae.encode(x)
    error = (x - sae.decode(features, x)).double().square().sum()
    assert outcome.quality is not None
    assert outcome.quality.held_out_rows == len(text) > 0
    assert outcome.quality.l0 == pytest.approx(float((features > 0).sum(dim=1).double().mean()))
    spread = np.square(text.astype(np.float64) - text.astype(np.float64).mean(axis=0)).sum()
    assert outcome.quality.fvu == pytest.approx(float(error) / spread, rel=1e-6)
    assert outcome.quality.dead_share == pytest.approx(float(1 - (features > 0).any(dim=0).double().mean()))
    stated = json.loads((path / "quality.json").read_text())
    assert stated.pop("held_out_rows") == len(text)
    assert sae.claims == pytest.approx(stated)


def test_bos_and_held_out_rows_are_not_trained_on(planted: tuple[Bucket, PlantedRows]) -> None:
    """Nor is any row served twice in an epoch, or a batch that is not whole."""
    bucket, rows = planted
    training = training_of(rows, "fed", batch_rows=100, rows=1000, held_out_every=7)
    kept = (rows.tokens.position > 0) & (rows.tokens.sequence % 7 != 0)
    allowed = Counter(row.tobytes() for row in rows.rows[kept])  # rows with nothing on are alike
    with RowFeed(open_run(bucket, "planted"), training, CPU) as feed:
        epoch = [next(feed).numpy() for _ in range(int(kept.sum()) // 100)]
        again = next(feed)
    served = Counter(row.tobytes() for batch in epoch for row in batch)
    assert served <= allowed
    assert served.total() > allowed.total() - 100
    assert float(again.norm(dim=1).max()) < BOS_NORM / 2
    with_bos = replace(training, exclude=())
    with RowFeed(open_run(bucket, "planted"), with_bos, CPU) as feed:
        assert max(float(next(feed).norm(dim=1).max()) for _ in range(10)) == pytest.approx(BOS_NORM, rel=1e-2)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_what_stops_anywhere_ends_with_the_same_bits(
    architecture: str, planted: tuple[Bucket, PlantedRows], tmp_path: Path
) -> None:
    bucket, rows = planted
    whole = trained(bucket, training_of(rows, f"whole-{architecture}", architecture))
    training = training_of(rows, f"stopped-{architecture}", architecture)
    for stop in (13, 14, 40):

        def stopping(progress: Progress, stop: int = stop) -> None:
            if progress.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(bucket, training, CPU, stopping, checkpoint_steps=6, progress_seconds=0.0)
        assert len(bucket.keys(training_checkpoints_folder(training.name))) == 1
    seen: list[Progress] = []
    stopped = trained(bucket, training, seen, checkpoint_steps=6)
    assert seen[0].step == 37  # after the checkpoint of step 36
    _, first = found(bucket, f"whole-{architecture}", tmp_path)
    _, second = found(bucket, training.name, tmp_path)
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    assert whole.quality == stopped.quality
    assert bucket.keys(training_checkpoints_folder(training.name)) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_told_to_end_saves_first(number: int, planted: tuple[Bucket, PlantedRows]) -> None:
    """After the step that it is in, long before the first regular checkpoint."""
    bucket, rows = planted
    training = training_of(rows, f"told-{number}")

    def tell(progress: Progress) -> None:
        if progress.step == 13:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(bucket, training, CPU, tell, progress_seconds=0.0)
    assert signal.getsignal(number) is before
    assert checkpoint_step(bucket, training) == 14
    seen: list[Progress] = []
    told = trained(bucket, training, seen)
    assert seen[0].step == 15
    assert told.quality == trained(bucket, training_of(rows, "untold")).quality


def test_checkpoints_begin_early_and_end_late(planted: tuple[Bucket, PlantedRows]) -> None:
    """Before step 1,000, and after the last step, when an SAE is still to be measured and stored."""
    bucket, rows = planted
    training = training_of(rows, "early")
    for stop, saved in ((55, 50), (60, 60)):

        def stopping(progress: Progress, stop: int = stop) -> None:
            if progress.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(bucket, training, CPU, stopping, progress_seconds=0.0)
        assert checkpoint_step(bucket, training) == saved
    seen: list[Progress] = []
    assert trained(bucket, training, seen).quality == trained(bucket, training_of(rows, "undisturbed-early")).quality
    assert seen == []


def checkpoint_step(bucket: Bucket, training: Training) -> int:
    (key,) = bucket.keys(training_checkpoints_folder(training.name))
    return int(Path(key).stem)


def test_steps_that_are_too_few_are_warned_about(planted: tuple[Bucket, PlantedRows]) -> None:
    usual = training_of(planted[1], "few", rows=122 * 4096, batch_rows=4096, learning_rate=3e-4, dead_after_steps=1000)
    jump, dead, still = warnings_of(usual)
    for warning, steps in ((jump, 200), (dead, 2000), (still, 1667)):
        assert warning.startswith("122 steps of 4,096 rows are too few: ")
        assert warning.endswith(f"at least {steps:,} steps are needed, for example with --rows {steps * 4096}")
    assert warnings_of(replace(usual, rows=2000 * 4096)) == []
    assert len(warnings_of(replace(usual, rows=2000 * 4096 - 1))) == 1
    assert warnings_of(replace(usual, rows=500 * 4096, learning_rate=1e-3, dead_after_steps=200)) == []


def test_the_same_training_again_is_there_already(planted: tuple[Bucket, PlantedRows]) -> None:
    bucket, rows = planted
    first = trained(bucket, training_of(rows, "again"))
    seen: list[Progress] = []
    second = trained(bucket, training_of(rows, "again"), seen)
    assert seen == []
    assert replace(second, seconds=0) == replace(first, seconds=0)


def test_a_name_that_is_taken_is_refused(planted: tuple[Bucket, PlantedRows]) -> None:
    bucket, rows = planted
    trained(bucket, training_of(rows, "taken"))
    with pytest.raises(Conflict, match="width is 32, not 64") as refused:
        trained(bucket, training_of(rows, "taken", width=32))
    assert (refused.value.reason, refused.value.details["field"]) == ("SAE_EXISTS", "name")
    register_sae(bucket, SaeModelRecord("elsewhere", "c" * 64, "topk", SITE, D, 64, "model"))
    with pytest.raises(Conflict, match="not trained in this store"):
        trained(bucket, training_of(rows, "elsewhere"))
    with pytest.raises(Conflict, match="another one"):
        trained(bucket, replace(training_of(rows, "other-run"), specification_sha256="0" * 64))
    assert not bucket.exists(training_key("elsewhere"))
    assert not bucket.exists(training_key("other-run"))


REFUSED = [
    ({"width": 0}, "width"),
    ({"architecture": "transformer"}, "architecture"),
    ({"sparsity": 65}, "k"),
    ({"sparsity": 0}, "k"),
    ({"sparsity": 2.5}, "k"),
    ({"sparsity": float("nan")}, "k"),
    ({"architecture": "standard", "sparsity": -1.0}, "l1"),
    ({"rows": 63}, "rows"),
    ({"batch_rows": 0}, "batch_rows"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"held_out_every": 1}, "held_out_every"),
    ({"exclude": ("nouns",)}, "exclude"),
    ({"name": "../up"}, "name"),
]


@pytest.mark.parametrize(("options", "field"), REFUSED, ids=lambda case: str(case)[:40])
def test_what_is_no_training(options: dict[str, Any], field: str, planted: tuple[Bucket, PlantedRows]) -> None:
    training = training_of(planted[1], "refused")
    with pytest.raises(BadRequest) as refused:
        replace(training, **options)
    assert refused.value.details["field"] == field
    assert refused.value.details["allowed"]


@pytest.mark.parametrize("site", ["resid_post.0", "mlp_out.1", "resid_post.7", "pattern.1", "nothing"])
def test_a_site_that_is_not_stored(site: str, planted: tuple[Bucket, PlantedRows]) -> None:
    with pytest.raises(BadRequest) as refused:
        trainings(planted[0], Grid("planted", site, "topk", [64], {}))
    assert refused.value.reason == "SITE_UNKNOWN"
    assert refused.value.details["value"] == site


def test_runs_that_cannot_be_trained_on(local_bucket: Bucket) -> None:
    rows = plant_rows("part", D, WIDTH, 3, 10, 2, "float32", 0)
    create_run(local_bucket, rows.record)
    write_planted_shard(local_bucket, rows, 0)
    with pytest.raises(BadRequest, match="1 of its 2 shards"):
        trained(local_bucket, training_of(rows, "sae"))
    write_planted_shard(local_bucket, rows, 1)
    with pytest.raises(BadRequest, match="fewer rows") as refused:
        trained(local_bucket, training_of(rows, "sae", rows=10_000, batch_rows=1000))
    assert refused.value.details["field"] == "batch_rows"
    assert local_bucket.keys("saes") == []  # so that the name is free for a training with smaller batches
    with pytest.raises(BadRequest, match="no run 'nothing'"):
        trained(local_bucket, replace(training_of(rows, "sae"), run="nothing"))


def test_rows_that_are_no_numbers(local_bucket: Bucket) -> None:
    """Are refused where they would be trained on, and no matter where they are not: here all BOS rows are infinite."""
    for run, spoilt in (("bos", 0), ("text", 1)):
        rows = plant_rows(run, D, WIDTH, 3, 10, 2, "float32", 0)
        rows.rows[rows.tokens.position == spoilt, 3] = np.inf if spoilt == 0 else np.nan
        create_run(local_bucket, rows.record)
        for shard in range(2):
            write_planted_shard(local_bucket, rows, shard)
        if spoilt == 0:
            assert trained(local_bucket, training_of(rows, run)).quality is not None
            continue
        with pytest.raises(BadRequest, match="infinite or NaN") as refused:
            trained(local_bucket, training_of(rows, run))
        assert refused.value.details["field"] == "site"
    assert [sae.name for sae in list_saes(local_bucket)] == ["bos"]


def test_a_damaged_checkpoint_is_named(planted: tuple[Bucket, PlantedRows]) -> None:
    bucket, rows = planted
    training = training_of(rows, "damaged")

    def stopping(progress: Progress) -> None:
        if progress.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(bucket, training, CPU, stopping, checkpoint_steps=4, progress_seconds=0.0)
    (key,) = bucket.keys(training_checkpoints_folder("damaged"))
    whole = bucket.get(key)
    weights = whole.rindex(b"sae_weights.safetensors") + 1500  # behind the header of that member, among its numbers
    flipped = whole[:weights] + bytes([whole[weights] ^ 1]) + whole[weights + 1 :]
    for data in (b"", whole[: len(whole) // 2], b"no archive" * 1000, flipped):
        bucket.put(key, data)
        with pytest.raises(CorruptObject) as caught:
            trained(bucket, training)
        assert caught.value.details["value"] == key


def test_a_stored_sae_is_fetched_once_and_checked(planted: tuple[Bucket, PlantedRows], tmp_path: Path) -> None:
    bucket, rows = planted
    sha256 = trained(bucket, training_of(rows, "fetched")).sha256
    path, _ = found(bucket, "fetched", tmp_path / "cache")
    assert path == tmp_path / "cache" / sha256
    assert sorted(file.name for file in path.iterdir()) == ["cfg.json", "quality.json", "sae_weights.safetensors"]
    key = f"saes/fetched/files/{sha256}/cfg.json"
    data = bucket.get(key)
    bucket.put(key, data.replace(b"topk", b"kpot"))
    assert found(bucket, "fetched", tmp_path / "cache")[0] == path
    with pytest.raises(CorruptObject, match="does not match the hash of the file"):
        found(bucket, "fetched", tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    bucket.put(key, data)
    (path / "cfg.json").write_bytes(data.replace(b"topk", b"kpot"))  # the cache is anyone's to damage
    assert found(bucket, "fetched", tmp_path / "cache")[1].sha256 == sha256
    assert (path / "cfg.json").read_bytes() == data
    save_sae(tmp_path / "models" / "fetched", "topk")
    catalog = ModelCatalog((tmp_path / "models",), stored=StoredSaes(bucket, tmp_path / "cache"))
    assert catalog.find_sae("fetched") == tmp_path / "models" / "fetched"  # a folder comes first
    with pytest.raises(ActstoreError, match="no sae 'nothing'"):
        catalog.find_sae("nothing")


def test_lists_are_a_sweep(planted: tuple[Bucket, PlantedRows]) -> None:
    bucket, rows = planted
    asked = Grid(
        "planted",
        "blocks.1.hook_resid_post",
        "topk",
        [32, 64],
        {"k": [2, 4], "l1": []},
        "sweep",
        options={"batch_rows": 64},
    )
    names = [training.name for training in trainings(bucket, asked)]
    assert names == ["sweep-w32-k2", "sweep-w32-k4", "sweep-w64-k2", "sweep-w64-k4"]
    (one,) = trainings(bucket, replace(asked, widths=[32], sparsities={"k": [2]}))
    assert (one.name, one.site, one.rows) == ("sweep", SITE, rows.record.tokens_total)
    (unnamed,) = trainings(bucket, replace(asked, widths=[32], sparsities={}, name=""))
    assert unnamed.name == "planted-blocks.1.hook_resid_post-topk-w32-k32"
    refused_changes: list[tuple[dict[str, Any], str]] = [
        ({"sparsities": {"l1": [1.0]}}, "l1"),
        ({"widths": [32, 32]}, "width"),
        ({"widths": []}, "width"),
        ({"architecture": "deep"}, "architecture"),
    ]
    for change, field in refused_changes:
        with pytest.raises(BadRequest) as refused:
            trainings(bucket, replace(asked, **change))
        assert refused.value.details["field"] == field


SMALL = ["--width", "64", "--k", "3", "--batch-rows", "64", "--learning-rate", "3e-3", "--checkpoint-steps", "50"]


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """By kill -9, at a random moment after its first checkpoint; the same command then ends as an undisturbed one."""
    bucket = open_bucket(str(tmp_path))
    write_planted_rows(bucket, d=D, features=WIDTH)
    command, moment = Command(tmp_path), random.Random(os.getpid()).random()
    arguments = [*SMALL, "--rows", str(1500 * 64)]
    names = (f"killed-{attempt}" for attempt in range(TRIES))
    name = next(name for name in names if killed(command.start(*arguments, "--name", name), bucket, name, moment / 2))
    asked = Training.from_json(bucket.get(training_key(name)), training_key(name))
    status, said, _ = command.run(*arguments, "--name", name)
    assert status == 0
    trained(bucket, replace(asked, name="undisturbed"))
    (result,) = said[-1]["trained"]
    assert (result["name"], result["width"], result["k"], result["rows"]) == (name, 64, 3.0, 1500 * 64)
    both = [found(bucket, sae, tmp_path / "cache")[1] for sae in (name, "undisturbed")]
    for part, tensor in both[0].tensors.items():
        assert torch.equal(tensor, both[1].tensors[part]), f"{part}, killed {moment / 2} s after a checkpoint"


def killed(process: "subprocess.Popen[str]", bucket: Bucket, name: str, seconds: float) -> bool:
    """So long after its first checkpoint. False: it had ended before."""
    folder = training_checkpoints_folder(name)
    wait_until(lambda: process.poll() is not None or bucket.keys(folder), "the first checkpoint")
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    _, complained = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), complained
    return process.returncode != 0
