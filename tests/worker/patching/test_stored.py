"""Rows of a stored run in place of activations, against transformers' own hidden states of the run's texts."""

import functools
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actstore_api.records.capture import Positions
from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep, StoredSource
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.format.sites import Site
from actstore_storage.runs.opening import create_run
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.planning.options import SINK_RATIO
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.loading import load_model
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.stored_rows import StoredReading, StoredRows
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.plan import plan_sweep
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from actstore_worker.sae.formats.loading import load_sae
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.small_models import CONTEXT_LENGTH, save_gpt2, save_neox, save_sae
from tests.worker.patching.plain_patches import TOLERANCE, PlainPatches, putting, rows_of
from tests.worker.paths.plain_paths import PlainPaths

CPU = torch.device("cpu")
LIMITS = PatchingLimits()
PAIR = PromptPair("the cat sat", "the dog ran", "a", "b")
LENGTH = 12
TEXTS = [f"text {number:02d} is {'long ' * (number % 3)}enough" for number in range(20)]
SITES = ("resid_pre", "z", "resid_post.1")


class Lab:
    """Two models, and runs of one of them: of every shape, and of one shard a sequence."""

    def __init__(self, folder: Path) -> None:
        for name in ("models", "data", "store"):
            (folder / name).mkdir()
        (folder / "data" / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        save_gpt2(folder / "models" / "gpt2")
        save_neox(folder / "models" / "neox")
        save_sae(folder / "models" / "sae", "standard")
        self.folder, self.catalog = folder, ModelCatalog((folder / "models",))
        self.bucket: Bucket = open_bucket(str(folder / "store"))
        self.capture("run", dense_sites=SITES, sequences_per_shard=4)
        self.capture("shards", dense_sites=SITES, sequences_per_shard=1)
        self.capture("bfloat16", dense_sites=SITES, dtype="bfloat16")
        self.capture("norms")
        self.capture("fourth", dense_sites=SITES, positions=Positions("stride", 4), storage_dtype="float16")
        self.capture("heads", dense_sites=("z.1.0", "z.1.3"))
        self.capture("first", dense_sites=SITES, positions=Positions("stride", CONTEXT_LENGTH))
        self.model = functools.cache(lambda name: load_model(self.catalog.find_model(name), device=CPU))
        self.supplies = Supplies(self.bucket, lambda name: load_sae(folder / "models" / name, name))

    def plan(self, run: str, **options: Any) -> Plan:
        settings = PlanSettings(DatasetPlaces((self.folder / "data",)))
        return plan_capture(capture_request("gpt2", "texts.jsonl", run, **options), self.catalog, settings)

    def capture(self, run: str, **options: Any) -> None:
        capture_run(self.plan(run, **options), self.bucket, CaptureWorker(self.bucket, CPU))

    def read(self, source: str, asked: StoredSource, most: int = LIMITS.stored_rows) -> StoredRows:
        sites = [Site(1, "resid_pre"), Site(2, "resid_pre")]
        return self.rows(sites, source, asked, LENGTH, most)

    def rows(
        self, sites: Iterable[Site], source: str, asked: StoredSource, length: int, most: int = LIMITS.stored_rows
    ) -> StoredRows:
        reading = StoredReading.begin(self.bucket, self.model("gpt2"), asked, source, length, most)
        return StoredRows(reading.taken, {site: reading.rows(site) for site in sites})

    @functools.cached_property
    def expected(self) -> dict[int, Tensor]:
        """What goes into each layer, of all tokens but BOS of all texts, by transformers alone."""
        model = self.model("gpt2")
        rows: dict[int, list[Tensor]] = {}
        for text in TEXTS:
            ids = torch.tensor([[0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
            with torch.no_grad():
                states = model.module(ids, output_hidden_states=True).hidden_states
            for layer in range(3):
                rows.setdefault(layer, []).append(states[layer][0, 1:])
        return {layer: torch.cat(found) for layer, found in rows.items()}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("stored"))


def test_the_mean_is_over_all_rows_but_bos(lab: Lab) -> None:
    found = lab.read("mean", StoredSource("run"))
    tokens = len(lab.expected[1])
    assert (found.taken.used, found.taken.read, found.taken.stored) == (
        tokens,
        tokens + len(TEXTS),
        tokens + len(TEXTS),
    )
    for layer in (1, 2):
        rows = found.rows[Site(layer, "resid_pre")]
        torch.testing.assert_close(rows, lab.expected[layer].mean(dim=0).expand(LENGTH, -1), atol=1e-5, rtol=1e-5)


def test_with_bos_the_mean_is_another(lab: Lab) -> None:
    found = lab.read("mean", StoredSource("run", frozenset()))
    assert found.taken.used == found.taken.read == found.taken.stored
    assert found.taken.sink_ratio == SINK_RATIO
    rows = found.rows[Site(1, "resid_pre")]
    assert not torch.allclose(rows[0], lab.expected[1].mean(dim=0), atol=1e-3)


def test_where_a_run_stores_some_positions_the_mean_is_over_those(lab: Lab) -> None:
    """Stored in float16, which the capture's own numbers are rounded to."""
    found = lab.read("mean", StoredSource("fourth"))
    lengths = [len(text) + 1 for text in TEXTS]
    stored = [range(0, length, 4) for length in lengths]
    assert (found.taken.used, found.taken.read) == (sum(len(rows) - 1 for rows in stored), sum(map(len, stored)))
    starts = np.cumsum([0, *(length - 1 for length in lengths)])  # `expected` has no BOS
    chosen = [start + row - 1 for start, rows in zip(starts, stored, strict=False) for row in rows if row]
    for layer in (1, 2):
        mean = lab.expected[layer][chosen].mean(dim=0)
        torch.testing.assert_close(found.rows[Site(layer, "resid_pre")][0], mean, atol=1e-3, rtol=0)


def origins(lab: Lab, found: StoredRows) -> list[int]:
    """Which of the expected rows was drawn for each position; the same at both layers."""
    by_layer = []
    for layer in (1, 2):
        distance = (found.rows[Site(layer, "resid_pre")][:, None] - lab.expected[layer]).abs().amax(dim=2)
        assert float(distance.min(dim=1).values.max()) < 1e-5
        by_layer.append(distance.argmin(dim=1).tolist())
    assert by_layer[0] == by_layer[1]
    return by_layer[0]


def test_drawn_rows_are_the_runs_own_and_of_the_same_tokens_at_all_sites(lab: Lab) -> None:
    drawn = [origins(lab, lab.read("resample", StoredSource("run", seed=seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > LENGTH // 2  # tokens of equal beginnings have equal rows
    assert max(drawn[0]) > len(lab.expected[1]) // 2  # from all over the run
    assert origins(lab, lab.read("resample", StoredSource("shards"))) == drawn[0]  # however it lies in shards


@pytest.mark.parametrize("run", ["run", "shards"])
def test_of_a_large_run_a_part_is_read_that_is_spread_over_it(lab: Lab, run: str) -> None:
    found = lab.read("mean", StoredSource(run), most=200)
    assert found.taken.stored == len(lab.expected[1]) + len(TEXTS)
    sequences = {"run": 5, "shards": 16}[run]  # at least one of each shard that is looked at
    assert 0 < found.taken.used == found.taken.read - sequences < found.taken.stored // 1.2
    assert found.taken.read <= 200 or run == "shards"
    rows = found.rows[Site(1, "resid_pre")]
    assert not torch.allclose(rows[0], lab.expected[1].mean(dim=0), atol=1e-5)
    assert origins(lab, lab.read("resample", StoredSource(run), most=200)) != origins(
        lab, lab.read("resample", StoredSource(run))
    )


@pytest.mark.parametrize("source", ["mean", "resample"])
def test_patched_runs_are_those_of_plain_hooks(lab: Lab, source: str) -> None:
    model = lab.model("gpt2")
    twin, asked = PlainPatches(model), StoredSource("run", seed=3)
    request = RunSweep(ModelReference(""), (PAIR,), sites=("resid_pre", "z"), source=source, stored=asked)
    plan = plan_sweep(model, request, LIMITS, lab.supplies)
    stored = lab.rows(plan.sites, source, asked, plan.length)
    for entry, base, _, logits in rows_of(model, plan, stored):
        assert not plan.is_unchanged(entry, plan.pairs[0])
        if entry.site == "resid_pre":
            row = stored.rows[Site(entry.layer, "resid_pre")][[entry.position]]
            expected = twin.logits(base, {("in", entry.layer): putting(row, [entry.position])})
            torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("source", ["mean", "resample"])
@pytest.mark.parametrize("receivers", [("q.1.0", "v.2", "mlp_in.1"), ("logits",)], ids="+".join)
def test_rows_are_sent_along_paths_as_plain_hooks_send_them(lab: Lab, source: str, receivers: tuple[str, ...]) -> None:
    model, asked = lab.model("gpt2"), StoredSource("run", seed=3)
    request = RunSweep(
        ModelReference(""),
        (PAIR,),
        sites=("resid_pre", "z"),
        source=source,
        stored=asked,
        receivers=receivers,
        positions="last",
    )
    plan = plan_sweep(model, request, LIMITS, lab.supplies)
    assert plan.receivers is not None
    stored = lab.rows(plan.sites, source, asked, plan.length)
    *_, result = run_sweep(model, request, LIMITS, supplies=lab.supplies)
    assert isinstance(result, WholeSweep)
    tokens = plan.pairs[0]
    for row in result.cells.to_pylist():
        base = torch.tensor(tokens.base(row["direction"]))
        twin, sender = PlainPaths(model.module, base, base), (row["layer"], row["site"])
        rows = stored.rows[Site(row["layer"], row["site"])][: len(base)]
        twin.of_source = {**twin.of_base, sender: rows.view(twin.of_base[sender].shape)}
        places = [((site.layer, site.kind), site.head) for site in plan.receivers.sites]
        one = (sender, row["head"], [row["position"]])
        direct = receivers == ("logits",)
        logits = twin.direct(*one, through_mlps=True) if direct else twin.patched(*one, places, through_mlps=True)
        expected = float(logits[tokens.clean_answer] - logits[tokens.corrupt_answer])
        assert row["logit_difference"] == pytest.approx(expected, abs=3e-5)
        assert not row["unchanged"]


@pytest.mark.parametrize("source", ["mean", "resample"])
def test_heads_that_are_stored_alone_are_as_those_of_the_whole_site(lab: Lab, source: str) -> None:
    model, found = lab.model("gpt2"), {}
    for run in ("run", "heads"):
        request = RunSweep(
            ModelReference(""),
            (PAIR,),
            sites=("z",),
            layers=(1,),
            heads=(0, 3),
            source=source,
            stored=StoredSource(run),
        )
        plan = plan_sweep(model, request, LIMITS, lab.supplies)
        stored = lab.rows(plan.sites, source, StoredSource(run), plan.length)
        found[run] = torch.stack([logits for *_, logits in rows_of(model, plan, stored)])
    torch.testing.assert_close(found["heads"], found["run"], **TOLERANCE)
    with pytest.raises(ActstoreError, match=r"has no usable rows of z\.1\.2") as refusal:
        plan_sweep(model, replace(request, heads=(0, 2)), LIMITS, lab.supplies)
    assert refusal.value.details["allowed"] == "z.1.0, z.1.3"


def test_of_spans_and_of_features_rows_are_drawn_too(lab: Lab) -> None:
    model, asked = lab.model("gpt2"), StoredSource("run")
    long = PromptPair("the cat sat on", "a dog sat on", "a", "b")
    request = RunSweep(
        ModelReference(""), (long,), sites=("resid_pre", "features"), source="resample", stored=asked,
        spans=(PatchSpan("animal", "cat", "dog"),), sae="sae", sae_error="patched",
    )  # fmt: skip
    plan = plan_sweep(model, request, LIMITS, lab.supplies)
    stored = lab.rows(plan.sites, "resample", asked, plan.length)
    twin = PlainPatches(model)
    for entry, base, _, logits in rows_of(model, plan, stored):
        into, out_of = ((3, 4, 5), (5, 6, 7)) if base == plan.pairs[0].corrupt else ((5, 6, 7), (3, 4, 5))
        if entry.site == "resid_pre" or entry.name == "animal: together":
            site, place = Site(entry.layer, "resid_pre"), ("in", entry.layer)
            if entry.site == "features":
                site, place = Site(1, "resid_post"), ("out", 1)
            expected = twin.logits(base, {place: putting(stored.rows[site][list(out_of)], list(into))})
            torch.testing.assert_close(logits, expected, **TOLERANCE)


ASKED = RunSweep(ModelReference(""), (PAIR,), sites=("resid_pre",), source="mean", stored=StoredSource("run"))


@pytest.mark.parametrize(
    ("change", "reason", "field", "value", "allowed"),
    [
        ({"stored": None}, "ARGUMENT_INVALID", "stored.run", "", "a run's name"),
        ({"source": "prompt"}, "ARGUMENT_INVALID", "stored.run", "run", "source mean or resample"),
        ({"stored": StoredSource("nothing")}, "RUN_NOT_FOUND", "run", "nothing", "run"),
        ({"stored": StoredSource("bfloat16")}, "RUN_MISMATCH", "stored.run", "bfloat16", "float32"),
        ({"stored": StoredSource("norms")}, "SITE_UNKNOWN", "sites", "resid_pre.", "without dense sites"),
        ({"stored": StoredSource("run", frozenset({"verbs"}))}, "ARGUMENT_INVALID", "exclude", "verbs", "bos"),
        ({"sites": ("attn_out",)}, "SITE_UNKNOWN", "sites", "attn_out.", "resid_post.1"),
        ({"sites": ("pattern",)}, "SITE_UNKNOWN", "sites", "pattern.", "resid_post.1"),
        ({"sites": ("embedding",)}, "ARGUMENT_INVALID", "sites", "embedding", "sites other"),
        ({"sites": (), "sae": "sae"}, "ARGUMENT_INVALID", "sites", "features", "sites other"),
    ],
)
def test_what_is_refused(lab: Lab, change: dict[str, Any], reason: str, field: str, value: str, allowed: str) -> None:
    with pytest.raises(ActstoreError) as refusal:
        plan_sweep(lab.model("gpt2"), replace(ASKED, **change), LIMITS, lab.supplies)
    details = {name: str(found) for name, found in refusal.value.details.items()}
    assert (refusal.value.reason, details["field"]) == (reason, field)
    assert value in details["value"]
    assert allowed in details["allowed"]


def test_rows_of_other_weights_are_refused(lab: Lab) -> None:
    with pytest.raises(ActstoreError, match="its rows are not activations of this model") as refusal:
        plan_sweep(lab.model("neox"), ASKED, LIMITS, lab.supplies)
    assert refusal.value.reason == "RUN_MISMATCH"
    assert refusal.value.details["value"] == lab.model("gpt2").weights_sha256
    configured_otherwise = replace(lab.model("gpt2"), model_config={})
    with pytest.raises(ActstoreError, match="with config_sha256") as refusal:
        plan_sweep(configured_otherwise, ASKED, LIMITS, lab.supplies)
    assert refusal.value.details["value"] == lab.model("gpt2").config_sha256


def test_a_run_without_rows_is_refused(lab: Lab) -> None:
    create_run(lab.bucket, lab.plan("empty", dense_sites=SITES).record)
    assert lab.read("mean", StoredSource("first", frozenset())).taken.used == len(TEXTS)
    for run in ("empty", "first"):
        with pytest.raises(ActstoreError, match="has no stored row that is not excluded") as refusal:
            lab.read("mean", StoredSource(run))
        assert refusal.value.reason == "NOTHING_LEFT"
        assert refusal.value.details["value"] == run


def test_without_a_store_there_are_no_rows(lab: Lab) -> None:
    with pytest.raises(ActstoreError, match="need a store"):
        plan_sweep(lab.model("gpt2"), ASKED, LIMITS)
