"""Planning and capture: what is refused before any forward pass, and what a batch may not change."""

import dataclasses
from pathlib import Path

import pytest
import torch

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site, expand_sites
from actstore_storage.runs.opening import create_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.shards.shard import CapturedBatch, ShardCapture
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.batching import Batch
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel, share_weights
from actstore_worker.models.taps import observe, visit
from tests.capture_requests import capture_request
from tests.capturing import capture_shard, padded
from tests.made_models.small_models import CONTEXT_LENGTH, DECODERS, LAYERS, save_neox, save_sae

CPU = torch.device("cpu")
TEXTS = {"a.txt": "some text, longer than the context of so small a model is", "b.txt": "short", "c.txt": "words " * 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, SAEs and text for every test here; nobody writes to it."""
    folder = tmp_path_factory.mktemp("lab")
    for name, save in DECODERS.items():
        save(folder / "models" / name)
    save_neox(folder / "models" / "no_bos", bos=False)
    save_sae(folder / "models" / "topk", "topk")
    save_sae(folder / "models" / "gated", "gated")
    save_sae(folder / "models" / "wide", "standard", d_in=99)
    (folder / "data" / "text").mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / "data" / "text" / name).write_text(text)
    (folder / "data" / "empty.txt").write_text("")
    return folder


def plan(folder: Path, model: str = "gpt2", dataset: str = "text", **options: object) -> Plan:
    settings = PlanSettings(DatasetPlaces((folder / "data",)))
    return plan_capture(capture_request(model, dataset, **options), ModelCatalog((folder / "models",)), settings)


def load(planned: Plan) -> LanguageModel:
    return load_model(planned.model_source, dtype=planned.record.specification.dtype, device=CPU)


def test_defaults_are_filled_in(folder: Path) -> None:
    record = plan(folder, saes=("topk",), dense_sites=("resid_post.1", "blocks.0.hook_resid_mid")).record
    asked = record.specification
    assert record.run == f"gpt2-text-{record.specification_sha256[:8]}"
    assert (asked.context_length, asked.prepend_bos, asked.dtype, asked.text_field) == (
        CONTEXT_LENGTH,
        True,
        "float32",
        "text",
    )
    assert asked.dense_sites == ("resid_mid.0", "resid_post.1")
    assert len(asked.norm_sites) == 5 * LAYERS
    assert [(sae.name, sae.site, sae.d_sae) for sae in asked.saes] == [("topk", "resid_post.1", 64)]
    text = sum(len(text) for text in TEXTS.values())
    assert record.tokens_total == text + record.sequences_total
    assert (record.attention_implementation, record.device, record.d_model) == ("sdpa", "cpu", 16)


def test_equal_requests_are_the_same_run_and_others_are_not(folder: Path) -> None:
    first = plan(folder).record
    assert plan(folder).record == first
    for change in ({"context_length": 8}, {"prepend_bos": False}, {"dtype": "bfloat16"}, {"max_tokens": 40}):
        assert plan(folder, **change).record.specification_sha256 != first.specification_sha256


def test_shards_are_whole_batches_of_about_the_bytes_wanted(folder: Path) -> None:
    catalog, request = ModelCatalog((folder / "models",)), capture_request("gpt2", "text", context_length=4)
    total = plan_capture(request, catalog, PlanSettings(DatasetPlaces((folder / "data",)))).record.sequences_total

    def shards(**settings: int) -> tuple[int, int]:
        small = PlanSettings(DatasetPlaces((folder / "data",)), **{"sequences_per_batch": 2} | settings)
        record = plan_capture(request, catalog, small).record
        return record.specification.sequences_per_shard, record.shards_total

    assert shards() == (2 * -(-total // 16), -(-total // (2 * -(-total // 16))))
    assert shards(shards_target=1) == (total + total % 2, 1)
    assert shards(shard_bytes_target=1)[0] == 2
    # A token is 2 bytes of its own and 39 norms and cosines of 4; sequences here have up to 4.
    assert shards(shards_target=1, shard_bytes_target=7 * 4 * (2 + 156))[0] == 8
    assert plan(folder, sequences_per_shard=3, sequences_per_batch=5).record.specification.sequences_per_shard == 3


def test_a_shard_has_a_limit_in_bytes(folder: Path) -> None:
    # A token is 2 bytes of its own and 39 norms and cosines of 4; sequences here have up to 32.
    settings = PlanSettings(DatasetPlaces((folder / "data",)), shard_bytes_max=4 * 32 * (2 + 156))
    catalog = ModelCatalog((folder / "models",))
    assert plan_capture(capture_request("gpt2", "text", sequences_per_shard=4), catalog, settings)
    with pytest.raises(BadRequest) as refused:
        plan_capture(capture_request("gpt2", "text", sequences_per_shard=100), catalog, settings)
    assert refused.value.reason == "LIMIT_EXCEEDED"
    assert refused.value.details["field"] == "sequences_per_shard"


REFUSED = [
    ({"model": "nope"}, "MODEL_NOT_FOUND", "model", "nope"),
    ({"dataset": "nope"}, "DATASET_NOT_FOUND", "dataset", "nope"),
    ({"dataset": "empty.txt"}, "DATASET_EMPTY", "dataset", "empty.txt"),
    ({"saes": ("nope",)}, "SAE_NOT_FOUND", "sae", "nope"),
    ({"saes": ("wide",)}, "SAE_MISMATCH", "d_in", "99"),
    ({"dense_sites": ("resid_post.3",)}, "SITE_UNKNOWN", "site", "resid_post.3"),
    ({"norm_sites": ("z",)}, "SITE_UNKNOWN", "site", "z"),
    ({"model": "neox_parallel", "dense_sites": ("resid_mid",)}, "SITE_UNKNOWN", "site", "resid_mid"),
    ({"model": "no_bos", "prepend_bos": True}, "ARGUMENT_INVALID", "prepend_bos", "True"),
    ({"context_length": 33}, "LIMIT_EXCEEDED", "context_length", "33"),
    ({"context_length": 1}, "ARGUMENT_INVALID", "context_length", "1"),
    ({"max_tokens": 31}, "ARGUMENT_INVALID", "dataset.max_tokens", "31"),
    ({"sequences_per_batch": 0}, "ARGUMENT_INVALID", "sequences_per_batch", "0"),
    ({"sequences_per_batch": 1025}, "LIMIT_EXCEEDED", "sequences_per_batch", "1025"),
    ({"sequences_per_shard": 1 << 21}, "LIMIT_EXCEEDED", "sequences_per_shard", str(1 << 21)),
    ({"run": "../run"}, "NAME_INVALID", "run", "../run"),
]


@pytest.mark.parametrize(("options", "reason", "field", "value"), REFUSED, ids=lambda case: str(case)[:40])
def test_bad_requests(options: dict[str, object], reason: str, field: str, value: str, folder: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        plan(folder, **options)
    details = refused.value.details
    assert (refused.value.reason, details["field"], details["value"]) == (reason, field, value)
    assert details["allowed"]
    assert ("attention and MLP both read resid_pre" in refused.value.message) == (value == "resid_mid")


def test_a_tokenizer_without_bos(folder: Path) -> None:
    planned = plan(folder, "no_bos", context_length=1)
    assert not planned.record.specification.prepend_bos
    assert planned.record.tokens_total == sum(len(text) for text in TEXTS.values())


@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_does_not_change_its_sequences(name: str, folder: Path) -> None:
    """Not by who else is in it, not by padding, and not by whether the padding is masked."""
    planned = plan(folder, name)
    model = load(planned)
    sites = expand_sites(model.kinds, model.kinds, model.layer_count)
    ids, inside = (torch.from_numpy(array) for array in padded(planned.sequences))
    assert not inside.all()
    together, masked = observe(model, ids, None, sites), observe(model, ids, inside, sites)
    for row, length in enumerate(inside.sum(dim=1).tolist()):
        alone = observe(model, ids[row : row + 1, :length], None, sites)
        for site in sites:
            torch.testing.assert_close(together[site][row, :length], alone[site][0], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(masked[site][row, :length], alone[site][0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_a_forward_pass_stops_after_the_last_site(name: str, folder: Path) -> None:
    model = load(plan(folder, name))
    ran: list[int] = []
    for index, layer in enumerate(model.layers):
        part = layer.get_submodule(model.family.taps[model.written_kinds[-1]].path)
        part.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.module.get_output_embeddings().register_forward_hook(lambda *_: ran.append(-1))
    ids = torch.arange(10)[None]
    expected = [({Site(1, "resid_pre")}, [0]), ({Site(1, "resid_post"), Site(0, "attn_out")}, [0, 1]), (set(), [])]
    for sites, layers in expected:
        ran.clear()
        assert observe(model, ids, None, sites).keys() == sites
        assert ran == layers
    layer = model.layers[0]
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks


def test_hooks_are_gone_after_an_error(folder: Path) -> None:
    model = load(plan(folder))

    def fail(_site: Site, _tensor: torch.Tensor) -> None:
        raise RuntimeError("as an observer may")

    with pytest.raises(RuntimeError, match="as an observer may"):
        visit(model, torch.arange(3)[None], None, [Site(0, "resid_pre"), Site(1, "resid_post")], fail)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


def test_the_second_attempt_loses(folder: Path, local_bucket: Bucket) -> None:
    planned = plan(folder, dense_sites=("resid_pre.0",), saes=("topk",), sequences_per_shard=4, sequences_per_batch=3)
    create_run(local_bucket, planned.record)
    capture, own = ShardCapture(load(planned), planned.saes, planned.record), planned.shard_sequences(1)
    with ShardWriter(local_bucket, planned.record, 1, "slow", columns=capture.norm_columns) as slow:
        capture.stream(slow, own)
        with ShardWriter(local_bucket, planned.record, 1, "fast", columns=capture.norm_columns) as fast:
            capture.stream(fast, own)
            assert fast.commit()
        assert not slow.commit()
    assert not [key for key in local_bucket.keys("runs") if "slow" in key]
    task = ShardTask(planned.record, planned.model_source, planned.sae_paths, 1, own, "late", planned.shard_sources(1))
    report = CaptureWorker(local_bucket, CPU).capture(task)
    assert (report.won, report.tokens) == (False, len(own.tokens))
    assert not [key for key in local_bucket.keys("runs") if "late" in key]


def test_lanes_share_weights_and_leave_threads_as_they_were(folder: Path, local_bucket: Bucket) -> None:
    planned = plan(folder, sequences_per_shard=8, sequences_per_batch=1)
    create_run(local_bucket, planned.record)
    model, threads = load(planned), torch.get_num_threads()
    twin = share_weights(model)
    for one, other in zip(model.module.parameters(), twin.module.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    seen: list[Site] = []
    visit(twin, torch.arange(3)[None], None, [Site(0, "resid_pre")], lambda site, _: seen.append(site))
    model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a twin runs another's hooks"))
    observe(twin, torch.arange(3)[None], None, [Site(2, "resid_post")])
    try:
        torch.set_num_threads(3)
        assert capture_shard(ShardCapture(twin, planned.saes, planned.record), local_bucket, planned, 0, "a")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_failing_batch_leaves_nothing(folder: Path, local_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(folder, dense_sites=("resid_pre.0",), sequences_per_shard=8, sequences_per_batch=1)
    create_run(local_bucket, planned.record)
    capture = ShardCapture(load(planned), planned.saes, planned.record)
    before = local_bucket.keys("runs")
    good, calls = capture.capture, iter(range(100))

    def fails_late(batch: Batch, _widened: frozenset[str]) -> CapturedBatch:
        if next(calls) == 3:
            raise RuntimeError("the device is gone")
        return good(batch)

    monkeypatch.setattr(capture, "capture", fails_late)
    with pytest.raises(RuntimeError, match="the device is gone"):
        capture_shard(capture, local_bucket, planned, 0, "first")
    assert local_bucket.keys("runs") == before


def test_capture_checks_that_it_has_what_was_planned(folder: Path) -> None:
    planned = plan(folder, saes=("topk",))
    model = load(planned)
    others = [{"weights_sha256": "0"}, {"model_config": {}}, {"dtype": "bfloat16"}]
    for saes, other in [((), model), *((planned.saes, dataclasses.replace(model, **change)) for change in others)]:
        with pytest.raises(BadRequest, match="changed after run") as refused:
            ShardCapture(other, saes, planned.record)
        assert refused.value.reason == "RUN_MISMATCH"
