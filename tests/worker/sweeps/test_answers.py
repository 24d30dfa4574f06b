"""What a sweep of embeddings, features, stored rows and spans answers."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep, Screen, StoredSource
from actstore_api.records.terms import ModelReference, Range
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.loading import load_model
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from actstore_worker.sae.formats.loading import load_sae
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.small_models import save_gpt2, save_sae

CPU = torch.device("cpu")
# Small enough that there are several slices.
LIMITS = PatchingLimits(tokens_per_slice=150)
PAIR = PromptPair("the cat sat", "the dog ran", "a", "b")
LONG = PromptPair("the cat sat on", "the big dog sat on", "a", "b")
BASELINE = ("logit_difference", "log_probability", "probability", "loss", "rank")


class Lab:
    def __init__(self, folder: Path) -> None:
        for name in ("models", "data", "store"):
            (folder / name).mkdir()
        self.texts = [f"text {number} is long enough" for number in range(6)]
        (folder / "data" / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in self.texts))
        save_gpt2(folder / "models" / "gpt2")
        save_sae(folder / "models" / "sae", "standard")
        catalog, bucket = ModelCatalog((folder / "models",)), open_bucket(str(folder / "store"))
        settings = PlanSettings(DatasetPlaces((folder / "data",)))
        asked = capture_request("gpt2", "texts.jsonl", "run", dense_sites=("resid_pre",))
        capture_run(plan_capture(asked, catalog, settings), bucket, CaptureWorker(bucket, CPU))
        self.model = load_model(catalog.find_model("gpt2"), device=CPU)
        self.supplies = Supplies(bucket, lambda name: load_sae(folder / "models" / name, name))

    def ask(self, pair: PromptPair = PAIR, **fields: Any) -> WholeSweep:
        request = RunSweep(ModelReference("gpt2"), (pair,), **fields)
        *_, result = run_sweep(self.model, request, LIMITS, supplies=self.supplies)
        assert isinstance(result, WholeSweep)
        return result

    def rows(self, **fields: Any) -> list[dict[str, Any]]:
        return rows_of(self.ask(**fields).cells)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.to_pylist()
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("answers"))


def test_embeddings_of_equal_prompts_are_what_goes_into_the_first_layer(lab: Lab) -> None:
    embedding, residual = lab.rows(sites=("embedding",)), lab.rows(sites=("resid_pre",), layers=(0,))
    assert {(row["site"], row["layer"]) for row in embedding} == {("embedding", None)}
    assert [row["position"] for row in embedding] == [*range(12), *range(12)]
    for mine, other in zip(embedding, residual, strict=True):
        assert (mine["token"], mine["unchanged"]) == (other["token"], other["unchanged"])
        assert mine["logit_difference"] == pytest.approx(other["logit_difference"], abs=1e-6)
    screened = lab.rows(sites=("embedding",), screen=Screen(3))
    assert sum(row["logit_difference"] is not None and not row["unchanged"] for row in screened) == 6


def test_features_have_a_row_each_and_two_more(lab: Lab) -> None:
    answer = lab.ask(sae="sae", sae_error="patched", positions="all")
    rows = rows_of(answer.cells)
    assert {(row["site"], row["layer"], row["position"], row["head"]) for row in rows} == {("features", 1, None, None)}
    names = [row["name"] for row in rows]
    assert [row["feature"] is None for row in rows] == [name is not None for name in names]
    assert [name for name in names if name is not None] == ["together", "error"] * 2
    together = [row["normalized"] for row in rows if row["name"] == "together"]
    assert together == pytest.approx([1.0, 1.0], abs=1e-3)
    assert dict(answer.provenance.sae_sha256).keys() == {"sae"}
    assert answer.audit.audited_cells > 0
    assert not answer.stored_rows


def test_rows_before_the_first_difference_are_the_base_runs(lab: Lab) -> None:
    rows = lab.rows(sae="sae", features=(0, 5), only_positions=(4,))
    base = rows_of(lab.ask(sites=("resid_pre",), layers=(0,)).baselines)
    differences = {"denoise": base[1]["logit_difference"], "noise": base[0]["logit_difference"]}
    assert all(row["unchanged"] for row in rows)
    assert [row["logit_difference"] for row in rows] == [differences[row["direction"]] for row in rows]
    dropped = lab.rows(sae="sae", features=(0, 5), only_positions=(4,), sae_error="dropped")
    assert not any(row["unchanged"] for row in dropped)


def test_rows_of_a_run_are_told(lab: Lab) -> None:
    for source, used in (("mean", 6 * 21), ("resample", 12)):
        answer = lab.ask(sites=("resid_pre",), source=source, stored=StoredSource("run"))
        taken = answer.stored_rows
        assert (taken.run, taken.used, taken.read, taken.stored) == ("run", used, 6 * 22, 6 * 22)
        assert taken.excluded == {"bos"}
        assert not any(row["unchanged"] for row in rows_of(answer.cells))
    everything = lab.ask(
        sites=("resid_pre",),
        source="mean",
        stored=StoredSource("run", frozenset()),
    )
    assert (everything.stored_rows.used, everything.stored_rows.excluded) == (6 * 22, frozenset())


def test_an_estimate_of_the_mean_is_a_gradient_times_the_change(lab: Lab) -> None:
    """The gradient by a plain hook, whose mean is over transformers' hidden states."""
    fields = {"sites": ("resid_pre",), "layers": (1,), "source": "mean", "stored": StoredSource("run")}
    answer = lab.ask(**fields, directions=("denoise",), screen=Screen(2))
    clean, corrupt = (row["logit_difference"] for row in rows_of(answer.baselines))
    ids = [[[0, *lab.model.tokenizer(text)["input_ids"]] for text in texts] for texts in (lab.texts, ["the dog ran"])]
    with torch.no_grad():
        states = lab.model.module(torch.tensor(ids[0]), output_hidden_states=True).hidden_states
    mean = states[1][:, 1:].flatten(0, 1).mean(dim=0)
    found = lab.model.module(torch.tensor(ids[1]), output_hidden_states=True)
    a, b = (lab.model.tokenizer.convert_tokens_to_ids(name) for name in "ab")
    x = found.hidden_states[1].detach().requires_grad_()
    handle = lab.model.layers[1].register_forward_pre_hook(lambda _, inputs: (x, *inputs[1:]))
    logits = lab.model.module(torch.tensor(ids[1]), use_cache=False).logits[0, -1]
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[a] - logits[b], x)
    expected = ((mean - x[0]) * gradient[0]).sum(dim=-1) / (clean - corrupt)
    assert [row["estimate"] for row in rows_of(answer.cells)] == pytest.approx(expected.tolist(), abs=1e-4, rel=1e-3)


def test_spans_let_prompts_have_other_lengths(lab: Lab) -> None:
    spans = (
        PatchSpan("the", "the", "the"),
        PatchSpan("animal", "cat", "dog"),
        PatchSpan("end", Range(8, 15), Range(12, 19)),
    )
    answer = lab.ask(LONG, spans=spans)
    rows, baselines = rows_of(answer.cells), rows_of(answer.baselines)
    heads = 4
    assert len(rows) == 2 * 3 * 3 * (3 + heads)
    assert {row["position"] for row in rows} == {row["token"] for row in rows} == {None}
    texts = rows_of(answer.tokens)
    assert [row["clean"] is None for row in texts] == [False] * 15 + [True] * 4
    assert None not in [row["corrupt"] for row in texts]
    for row in rows:
        assert row["unchanged"] == (row["name"] == "the")
        if row["unchanged"]:
            base = baselines[1] if row["direction"] == "denoise" else baselines[0]
            assert {name: row[name] for name in BASELINE} == {name: base[name] for name in BASELINE}
    last = [row for row in rows if (row["site"], row["layer"], row["name"]) == ("resid_pre", 2, "end")]
    assert len(last) == 2
    assert not any(row["normalized"] == 0 for row in last)
    assert answer.audit.largest_error <= answer.audit.tolerance


@pytest.mark.parametrize("fields", [{"features": (1,)}, {"sae_error": "dropped"}, {"sites": ("features",)}], ids=str)
def test_what_is_said_of_features_needs_an_sae(lab: Lab, fields: dict[str, Any]) -> None:
    with pytest.raises(ActstoreError) as refusal:
        lab.ask(**fields)
    assert (refusal.value.reason, refusal.value.details["field"]) == ("ARGUMENT_INVALID", "sae")


def test_a_span_says_where_it_ends(lab: Lab) -> None:
    with pytest.raises(ActstoreError, match="the end") as refusal:
        lab.ask(LONG, spans=(PatchSpan("x", "cat", Range(3)),))
    assert refusal.value.details["field"] == "spans"
