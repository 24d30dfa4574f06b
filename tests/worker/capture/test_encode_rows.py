"""SAEs over a run's stored rows: the features of a capture that had them from the start, without the model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actstore_api.records.capture import CaptureProgress, CaptureSpecification, DatasetReference, Positions, RowFilter
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError, BadRequest, Conflict
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import features_product
from actstore_storage.parquet.reading import open_product
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.tokens import document_sources
from actstore_storage.upkeep.fsck import check_runs
from actstore_storage.upkeep.removal import remove_run
from actstore_worker.capture.encode_plan import EncodePlan, plan_encoding
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.preparing import Preparing, register
from actstore_worker.capture.shards.tasks import EncodeTask
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.sae.formats.loading import load_sae
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.coordinating import ThreadWorker, coordinator, run, watch
from tests.made_models.random_models import WORDS
from tests.made_models.small_models import D_MODEL, save_gpt2, save_sae

CPU = torch.device("cpu")
SITE, OTHER_SITE = "resid_post.1", "resid_pre.0"
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, SAEs of every architecture at two sites, and documents of very different lengths."""
    lab = tmp_path_factory.mktemp("lab")
    save_gpt2(lab / "models" / "tiny")
    for architecture in ARCHITECTURES:
        save_sae(lab / "models" / architecture, architecture)
    save_sae(lab / "models" / "elsewhere", "topk", site="blocks.0.hook_resid_pre", seed=1)
    save_sae(lab / "models" / "wide", "topk", d_in=D_MODEL + 1)
    chosen = np.random.default_rng(0)
    lines = [" ".join(chosen.choice(WORDS, size)) for size in chosen.integers(1, 12, 23)]
    (lab / "data").mkdir()
    (lab / "data" / "words.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return lab


def captured(lab: Path, bucket: Bucket, name: str, **options: object) -> Snapshot:
    options = {"dense_sites": (SITE, OTHER_SITE), "sequences_per_shard": 9, "sequences_per_batch": 4} | options
    request = capture_request("tiny", "words.jsonl", run=name, **options)
    settings = PlanSettings(DatasetPlaces((lab / "data",)))
    return capture_run(plan_capture(request, catalog(lab), settings), bucket, CaptureWorker(bucket, CPU))


def catalog(lab: Path) -> ModelCatalog:
    return ModelCatalog((lab / "models",))


def planned(
    lab: Path, bucket: Bucket, base: str, saes: tuple[str, ...], *, run_bytes_max: int = 1 << 40, **options: object
) -> EncodePlan:
    request = replace(CaptureSpecification(run="over", rows_of=base, saes=saes), **options)
    settings = PlanSettings(DatasetPlaces((lab / "data",)), run_bytes_max=run_bytes_max)
    return plan_encoding(request, bucket, catalog(lab), settings)


def encoded(plan: EncodePlan, bucket: Bucket) -> Snapshot:
    register(bucket, plan)
    create_run(bucket, plan.record)
    worker = CaptureWorker(bucket, CPU)
    for shard in range(plan.record.shards_total):
        report = worker.capture(EncodeTask(plan.record, plan.sae_paths, shard, f"attempt{shard}"))
        assert report.won
    return open_run(bucket, plan.record.run)


def feature_hashes(snapshot: Snapshot, saes: tuple[str, ...]) -> list[str]:
    kinds = ("features", "index", "statistics")
    products = [f"{kind}-{sae}" for sae in saes for kind in kinds]
    return [commit.objects[product].sha256 for commit in snapshot.commits for product in products]


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"packing": True}, {"sequences_per_batch": 1}], ids=str)
def test_features_are_those_of_a_capture_that_had_the_saes_bit_for_bit(
    options: dict[str, object], lab: Path, local_bucket: Bucket
) -> None:
    saes = (*ARCHITECTURES, "elsewhere")
    captured(lab, local_bucket, "base", **options)
    whole = captured(lab, local_bucket, "whole", saes=saes, **options)
    over = encoded(planned(lab, local_bucket, "base", saes), local_bucket)
    assert feature_hashes(over, saes) == feature_hashes(whole, saes)
    assert [commit.non_finite for commit in over.commits] == [commit.non_finite for commit in whole.commits]
    assert check_runs(local_bucket).findings == ()


def test_a_run_with_features_gets_more_of_them(lab: Path, local_bucket: Bucket) -> None:
    captured(lab, local_bucket, "base", saes=("topk",))
    whole = captured(lab, local_bucket, "whole", saes=("topk", "gated"))
    over = encoded(planned(lab, local_bucket, "base", ("topk", "gated")), local_bucket)
    assert feature_hashes(over, ("topk", "gated")) == feature_hashes(whole, ("topk", "gated"))
    assert over.commits[0].objects["features-topk"].key.startswith("runs/base/")
    assert over.commits[0].objects["features-gated"].key.startswith("runs/over/")
    sources = document_sources(over)
    assert sources == document_sources(whole)
    assert None not in sources["source"].to_pylist()
    assert over.record.document_sources


def test_rows_in_a_narrower_dtype_are_encoded_as_they_are_stored(lab: Path, local_bucket: Bucket) -> None:
    base = captured(lab, local_bucket, "base", storage_dtype="bfloat16")
    over = encoded(planned(lab, local_bucket, "base", ("standard",)), local_bucket)
    sae = load_sae(lab / "models" / "standard", "standard")
    weights = {name: tensor.double().numpy() for name, tensor in sae.tensors.items()}
    batches = list(read_activations(base, SITE))
    rows = np.concatenate([dense_matrix(batch["activation"], "bfloat16", D_MODEL) for batch in batches])
    expected = np.maximum((rows - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    found = np.concatenate([dense_features(local_bucket, commit, sae.d_sae) for commit in over.commits])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def dense_features(bucket: Bucket, commit: Commit, d_sae: int) -> np.ndarray:
    found = np.zeros((commit.tokens, d_sae), np.float32)
    with open_product(bucket, commit, features_product("standard")) as file:
        row, feature, activation = (column.to_numpy() for column in file.read().columns)
    found[row, feature] = activation
    return found


REFUSED = [
    ({"saes": ()}, "ARGUMENT_INVALID", "saes"),
    ({"saes": ("topk",)}, "ARGUMENT_INVALID", "saes"),
    ({"saes": ("nope",)}, "SAE_NOT_FOUND", "sae"),
    ({"saes": ("wide",)}, "SAE_MISMATCH", "d_in"),
    ({"rows_of": "nothing"}, "RUN_NOT_FOUND", "run"),
    ({"rows_of": "part"}, "ARGUMENT_INVALID", "rows_of"),
    ({"rows_of": "strided"}, "ARGUMENT_INVALID", "rows_of"),
    ({"rows_of": "sparse"}, "SITE_UNKNOWN", "saes"),
    ({"model": ModelReference("other")}, "ARGUMENT_INVALID", "model"),
    ({"model": ModelReference("tiny", "later")}, "ARGUMENT_INVALID", "model.revision"),
    ({"dataset": DatasetReference("other")}, "ARGUMENT_INVALID", "dataset"),
    ({"dataset": DatasetReference("words.jsonl", max_tokens=0)}, "ARGUMENT_INVALID", "dataset.max_tokens"),
    (
        {"dataset": DatasetReference("words.jsonl", row_filters=(RowFilter("a", "==", (1,)),))},
        "ARGUMENT_INVALID",
        "dataset.row_filters",
    ),
    ({"positions": Positions.last()}, "ARGUMENT_INVALID", "positions"),
    ({"dtype": "bfloat16"}, "ARGUMENT_INVALID", "dtype"),
    ({"dense_sites": (SITE,)}, "ARGUMENT_INVALID", "dense_sites"),
    ({"sink_ratio": 0.0}, "ARGUMENT_INVALID", "sink_ratio"),
    ({"run": "../over"}, "NAME_INVALID", "run"),
]


@pytest.fixture(scope="module")
def runs(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """Runs that can be encoded, and runs that cannot."""
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    captured(lab, bucket, "base", saes=("topk",))
    captured(lab, bucket, "strided", positions=Positions("stride", stride=2))
    captured(lab, bucket, "sparse", dense_sites=(OTHER_SITE,))
    captured(lab, bucket, "part")
    bucket.delete("runs/part/commits/00000001.json")
    return bucket


@pytest.mark.parametrize(("options", "reason", "field"), REFUSED, ids=lambda case: str(case)[:40])
def test_bad_requests(options: dict[str, object], reason: str, field: str, lab: Path, runs: Bucket) -> None:
    with pytest.raises(BadRequest) as refused:
        planned(lab, runs, **{"base": "base", "saes": ("gated",)} | options)
    assert (refused.value.reason, refused.value.details["field"]) == (reason, field)
    assert refused.value.details["allowed"]


def test_what_is_asked_again_may_say_what_the_run_says(lab: Path, runs: Bucket) -> None:
    """As someone does who changes the specification that the catalog shows."""
    asked = open_run(runs, "base").record.specification
    names = ("context_length", "prepend_bos", "dense_sites", "norm_sites", "dtype", "sink_ratio")
    said = {"model": ModelReference(asked.model), "dataset": DatasetReference(asked.dataset, asked.text_field)}
    said |= {name: getattr(asked, name) for name in names}
    plan = planned(lab, runs, "base", ("topk", "gated"), **said)
    assert plan.record == planned(lab, runs, "base", ("gated",)).record
    assert [sae.name for sae in plan.saes] == ["gated"]
    assert plan.flops_per_token == 2 * D_MODEL * 64
    assert planned(lab, runs, "base", ("gated",), run="").record.run.startswith("tiny-words-")


def test_encoding_of_too_many_bytes_is_refused_with_both_numbers(lab: Path, runs: Bucket) -> None:
    most = sum(planned(lab, runs, "base", ("gated",)).bytes_by_product.values())
    assert planned(lab, runs, "base", ("gated",), run_bytes_max=most).record.run == "over"
    with pytest.raises(BadRequest, match=f"about {most} bytes, mostly .*; the limit is {most - 1}") as refusal:
        planned(lab, runs, "base", ("gated",), run_bytes_max=most - 1)
    assert (refusal.value.reason, refusal.value.details["value"]) == ("LIMIT_EXCEEDED", str(most))


def test_the_coordinator_encodes_as_it_captures(lab: Path, local_bucket: Bucket) -> None:
    """Cancelled, finished by another coordinator; every shard once."""
    shards = captured(lab, local_bucket, "base", sequences_per_shard=4).record.shards_total
    request = CaptureSpecification(run="over", rows_of="base", saes=("topk", "gated"))
    done: list[int] = []

    async def first() -> CaptureProgress:
        captures = coordinator(lab, local_bucket, ThreadWorker(local_bucket, lambda task: done.append(task.shard)))
        estimate = await captures.estimate(request)
        assert (estimate.documents, estimate.shards) == (0, shards)
        assert estimate.bytes_by_product.keys() == {
            f"{kind}-{sae}" for kind in ("features", "index") for sae in request.saes
        }
        name, version, progress = await captures.submit(request), -1, None
        while progress is None or progress.shards_committed < 2:
            version, progress = await captures.progress_after(name, version)
        return await captures.cancel(name)

    async def second() -> list[CaptureProgress]:
        captures = coordinator(lab, local_bucket, ThreadWorker(local_bucket, lambda task: done.append(task.shard)))
        return await watch(captures, await captures.submit(request))

    assert run(first()).state == "cancelled"
    assert run(second())[-1].state == "complete"
    whole = captured(lab, local_bucket, "whole", sequences_per_shard=4, saes=request.saes)
    assert feature_hashes(open_run(local_bucket, "over"), request.saes) == feature_hashes(whole, request.saes)
    assert set(done) == set(range(shards))
    assert check_runs(local_bucket).sound


def test_it_ends_with_its_cause(lab: Path, local_bucket: Bucket) -> None:
    captured(lab, local_bucket, "base")
    plan = planned(lab, local_bucket, "base", ("topk",))
    create_run(local_bucket, plan.record)
    worker, task = CaptureWorker(local_bucket, CPU), EncodeTask(plan.record, plan.sae_paths, 0, "attempt")
    worker.interrupt("attempt")
    with pytest.raises(ActstoreError) as ended:
        worker.capture(task)
    assert ended.value.reason == "CANCELLED"
    remove_run(local_bucket, "base", force=True)
    with pytest.raises(BadRequest, match="no run 'base'"):
        worker.capture(replace(task, attempt="second"))
    captured(lab, local_bucket, "base", context_length=8)
    with pytest.raises(Conflict, match="another specification"):
        worker.capture(replace(task, attempt="third"))
    captured(lab, local_bucket, "again")
    again = planned(lab, local_bucket, "again", ("topk",))
    with pytest.raises(BadRequest, match="changed after run"):
        worker.capture(EncodeTask(again.record, {"topk": lab / "models" / "elsewhere"}, 0, "fourth"))
    assert not [key for key in local_bucket.keys("runs/over") if "/data/" in key]


def test_without_rows_of_a_run_model_and_dataset_are_named(lab: Path, local_bucket: Bucket) -> None:
    preparing = Preparing(local_bucket, catalog(lab), PlanSettings(DatasetPlaces((lab / "data",))))
    for asked, field in (({}, "model"), ({"model": ModelReference("tiny")}, "dataset")):
        with pytest.raises(BadRequest, match=f"{field} is required"):
            preparing.plan(CaptureSpecification(saes=("topk",), **asked))
