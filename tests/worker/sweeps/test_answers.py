"""Sweeps of embeddings, features, stored rows and spans from the api's message to its answer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from actstore_worker.wire.sweeps import sweep_request, sweep_response

from actstore_api.records.patching import PatchSpan, StoredSource
from actstore_api.records.terms import Range
from actstore_api.v1 import capture_pb2, common_pb2, patching_pb2
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.wiring import load_model
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.limits import PatchingLimits
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from actstore_worker.sae import load_sae
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.small_models import save_gpt2, save_sae

CPU = torch.device("cpu")
# Small enough that there are several slices.
LIMITS = PatchingLimits(tokens_per_slice=150)
PROMPTS = {"clean": "the cat sat", "corrupt": "the dog ran", "clean_answer": "a", "corrupt_answer": "b"}
LONG = {**PROMPTS, "clean": "the cat sat on", "corrupt": "the big dog sat on"}
BASELINE = ("logit_difference", "log_probability", "probability", "loss", "rank")


@dataclass(frozen=True)
class Answer:
    rows: list[dict[str, Any]]
    end: patching_pb2.WholeSweep


class Lab:
    def __init__(self, folder: Path) -> None:
        for name in ("models", "data", "store"):
            (folder / name).mkdir()
        self.texts = [f"text {number} is long enough" for number in range(6)]
        (folder / "data" / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in self.texts))
        save_gpt2(folder / "models" / "gpt2")
        save_sae(folder / "models" / "sae", "standard")
        catalogue, bucket = ModelCatalogue((folder / "models",)), open_bucket(str(folder / "store"))
        settings = PlanSettings(DatasetPlaces((folder / "data",)))
        asked = capture_request("gpt2", "texts.jsonl", "run", dense_sites=("resid_pre",))
        capture_run(plan_capture(asked, catalogue, settings), bucket, CaptureWorker(bucket, CPU))
        self.model = load_model(catalogue.find_model("gpt2"), device=CPU)
        self.supplies = Supplies(bucket, lambda name: load_sae(folder / "models" / name, name))

    def ask(self, **fields: Any) -> Answer:
        message = patching_pb2.RunSweepRequest(
            **{"model": capture_pb2.ModelReference(name="gpt2"), **PROMPTS, **fields}
        )
        *_, result = run_sweep(self.model, sweep_request(message), LIMITS, supplies=self.supplies)
        assert isinstance(result, WholeSweep)
        return Answer(result.cells.to_pylist(), sweep_response(result).result)

    def rows(self, **fields: Any) -> list[dict[str, Any]]:
        return self.ask(**fields).rows


def rows_of(table: common_pb2.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.ipc.open_stream(table.arrow_ipc_stream).read_all().to_pylist()
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)  # such small models only wait for their second thread
    return Lab(tmp_path_factory.mktemp("answers"))


def test_embeddings_of_equal_prompts_are_what_goes_into_the_first_layer(lab: Lab) -> None:
    embedding, residual = lab.rows(sites=["embedding"]), lab.rows(sites=["resid_pre"], layers=[0])
    assert {(row["site"], row["layer"]) for row in embedding} == {("embedding", None)}
    assert [row["position"] for row in embedding] == [*range(12), *range(12)]
    for mine, other in zip(embedding, residual, strict=True):
        assert (mine["token"], mine["unchanged"]) == (other["token"], other["unchanged"])
        assert mine["logit_difference"] == pytest.approx(other["logit_difference"], abs=1e-6)
    screened = lab.rows(sites=["embedding"], screen=patching_pb2.Screen(exact_cells=3))
    assert sum(row["logit_difference"] is not None and not row["unchanged"] for row in screened) == 6


def test_features_have_a_row_each_and_two_more(lab: Lab) -> None:
    error = patching_pb2.SAE_ERROR_PATCHED
    answer = lab.ask(sae="sae", sae_error=error, positions=patching_pb2.PATCH_POSITIONS_ALL)
    rows = answer.rows
    assert {(row["site"], row["layer"], row["position"], row["head"]) for row in rows} == {("features", 1, None, None)}
    names = [row["name"] for row in rows]
    assert [row["feature"] is None for row in rows] == [name is not None for name in names]
    assert [name for name in names if name is not None] == ["together", "error"] * 2
    together = [row["normalized"] for row in rows if row["name"] == "together"]
    assert together == pytest.approx([1.0, 1.0], abs=1e-3)
    assert dict(answer.end.provenance.sae_sha256).keys() == {"sae"}
    assert answer.end.audit.audited_cells > 0
    assert not answer.end.HasField("stored_rows")


def test_rows_before_the_first_difference_are_the_base_runs(lab: Lab) -> None:
    rows = lab.rows(sae="sae", features=[0, 5], only_positions=[4])
    base = rows_of(lab.ask(sites=["resid_pre"], layers=[0]).end.baselines)
    differences = {"denoise": base[1]["logit_difference"], "noise": base[0]["logit_difference"]}
    assert all(row["unchanged"] for row in rows)
    assert [row["logit_difference"] for row in rows] == [differences[row["direction"]] for row in rows]
    dropped = lab.rows(sae="sae", features=[0, 5], only_positions=[4], sae_error=patching_pb2.SAE_ERROR_DROPPED)
    assert not any(row["unchanged"] for row in dropped)


def test_rows_of_a_run_are_told(lab: Lab) -> None:
    for source, used in ((patching_pb2.PATCH_SOURCE_MEAN, 6 * 21), (patching_pb2.PATCH_SOURCE_RESAMPLE, 12)):
        answer = lab.ask(sites=["resid_pre"], source=source, source_run="run")
        taken = answer.end.stored_rows
        assert (taken.run, taken.used, taken.read, taken.stored) == ("run", used, 6 * 22, 6 * 22)
        assert list(taken.excluded) == [common_pb2.TOKEN_CLASS_BOS]
        assert not any(row["unchanged"] for row in answer.rows)
    everything = lab.ask(
        sites=["resid_pre"],
        source=patching_pb2.PATCH_SOURCE_MEAN,
        source_run="run",
        source_exclude=common_pb2.Exclusion(),
    )
    assert (everything.end.stored_rows.used, list(everything.end.stored_rows.excluded)) == (6 * 22, [])


def test_an_estimate_of_the_mean_is_a_gradient_times_the_change(lab: Lab) -> None:
    """The gradient by a plain hook, whose mean is over transformers' hidden states."""
    fields = {"sites": ["resid_pre"], "layers": [1], "source": patching_pb2.PATCH_SOURCE_MEAN, "source_run": "run"}
    answer = lab.ask(**fields, directions=[1], screen=patching_pb2.Screen(exact_cells=2))
    clean, corrupt = (row["logit_difference"] for row in rows_of(answer.end.baselines))
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
    assert [row["estimate"] for row in answer.rows] == pytest.approx(expected.tolist(), abs=1e-4, rel=1e-3)


def test_spans_let_prompts_have_other_lengths(lab: Lab) -> None:
    text, tokens = patching_pb2.PromptRange, patching_pb2.TokenRange
    spans = [
        patching_pb2.PatchSpan(name="the", clean=text(text="the"), corrupt=text(text="the")),
        patching_pb2.PatchSpan(name="animal", clean=text(text="cat"), corrupt=text(text="dog")),
        patching_pb2.PatchSpan(
            name="end", clean=text(tokens=tokens(first=8, end=15)), corrupt=text(tokens=tokens(first=12, end=19))
        ),
    ]
    answer = lab.ask(**LONG, spans=spans)
    rows, baselines = answer.rows, rows_of(answer.end.baselines)
    heads = 4
    assert len(rows) == 2 * 3 * 3 * (3 + heads)
    assert {row["position"] for row in rows} == {row["token"] for row in rows} == {None}
    texts = rows_of(answer.end.tokens)
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
    assert answer.end.audit.largest_error <= answer.end.audit.tolerance


def test_a_message_says_all_of_it() -> None:
    message = patching_pb2.RunSweepRequest(
        model=capture_pb2.ModelReference(name="m"),
        source=patching_pb2.PATCH_SOURCE_RESAMPLE,
        source_run="run",
        source_exclude=common_pb2.Exclusion(classes=[common_pb2.TOKEN_CLASS_SINK]),
        source_seed=4,
        sae="sae",
        features=[1, 2],
        sae_error=patching_pb2.SAE_ERROR_DROPPED,
        spans=[
            patching_pb2.PatchSpan(
                name="x",
                clean=patching_pb2.PromptRange(text="cat"),
                corrupt=patching_pb2.PromptRange(tokens=patching_pb2.TokenRange(first=0, end=2)),
            )
        ],
        receivers=["q.1.0", "v.2"],
        path_mlps=patching_pb2.PATH_MLPS_FROZEN,
    )
    found = sweep_request(message)
    assert (found.receivers, found.path_mlps) == (("q.1.0", "v.2"), "frozen")
    assert (found.source, found.stored) == ("resample", StoredSource("run", frozenset({"sink"}), 4))
    assert found.features == SaeFeatures("sae", (1, 2), "dropped")
    assert found.spans == (PatchSpan("x", "cat", Range(0, 2)),)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"features": [1]}, "sae"),
        ({"sae_error": 2}, "sae"),
        ({"sae": "sae", "sae_error": 9}, "sae_error"),
        ({"receivers": ["logits"], "path_mlps": 9}, "path_mlps"),
        ({"source_run": "run", "source_exclude": common_pb2.Exclusion(classes=[9])}, "source_exclude"),
        ({"spans": [patching_pb2.PatchSpan(name="x", clean=patching_pb2.PromptRange(text="a"))]}, "spans"),
    ],
)
def test_messages_that_say_half_of_it_are_refused(fields: dict[str, Any], field: str) -> None:
    message = patching_pb2.RunSweepRequest(model=capture_pb2.ModelReference(name="m"), **fields)
    with pytest.raises(ActstoreError) as refusal:
        sweep_request(message)
    assert (refusal.value.reason, refusal.value.details["field"]) == ("ARGUMENT_INVALID", field)
