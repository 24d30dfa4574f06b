"""What else takes the place of activations: embeddings, and spans at other positions; against plain hooks."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep
from actstore_api.records.terms import ModelReference, Range
from actstore_storage.errors import ActstoreError
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.plan import plan_sweep
from tests.made_models.small_models import SAVERS
from tests.worker.patching.plain_patches import EMBEDDING, TOLERANCE, PlainPatches, putting, rows_of

CLEAN, CORRUPT = "the cat sat", "the dog ran"
PAIR = PromptPair(CLEAN, CORRUPT, "a", "b")
LIMITS = PatchingLimits()
# In the bytes of "the cat sat on" and "a dog sat on", with BOS in front.
LONG = PromptPair("the cat sat on", "a dog sat on", "a", "b")
ANIMAL = PatchSpan("animal", "cat", "dog")
LAST = PatchSpan("sat on", Range(9, 15), Range(7, 13))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, save in SAVERS.items():
        save(folder / name)
    return folder


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[[str], LanguageModel]:
    found = functools.partial(load_model, device=torch.device("cpu"))
    return functools.cache(lambda name: found(ModelCatalog((folder,)).find_model(name)))


@pytest.fixture(params=SAVERS)
def model(request: pytest.FixtureRequest, load: Callable[[str], LanguageModel]) -> LanguageModel:
    return load(request.param)


def test_embeddings_are_those_that_a_hook_on_their_module_replaces(model: LanguageModel) -> None:
    twin = PlainPatches(model)
    for source in ("prompt", "zero"):
        request = RunSweep(ModelReference(""), (PAIR,), sites=("embedding",), source=source)
        for entry, base, other, logits in rows_of(model, plan_sweep(model, request, LIMITS)):
            assert (entry.site, entry.layer, entry.head) == ("embedding", None, None)
            rows = twin.seen(other, EMBEDDING)[[entry.position]]
            rows = torch.zeros_like(rows) if source == "zero" else rows
            expected = twin.logits(base, {EMBEDDING: putting(rows, [entry.position])})
            torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_an_embedding_moves_without_its_position(model: LanguageModel) -> None:
    twin = PlainPatches(model)
    request = RunSweep(ModelReference(""), (LONG,), sites=("embedding",), spans=(ANIMAL, LAST))
    where = {"animal": (range(5, 8), range(3, 6)), "sat on": (range(9, 15), range(7, 13))}
    plan = plan_sweep(model, request, LIMITS)
    for entry, base, other, logits in rows_of(model, plan):
        clean, corrupt = where[entry.name]
        into, out_of = (corrupt, clean) if base == plan.pairs[0].corrupt else (clean, corrupt)
        rows = twin.seen(other, EMBEDDING)[list(out_of)]
        torch.testing.assert_close(logits, twin.logits(base, {EMBEDDING: putting(rows, into)}), **TOLERANCE)


def test_spans_are_replaced_at_once_by_those_of_the_source(model: LanguageModel) -> None:
    """Prompts of 15 and of 13 tokens; what goes into a layer at the span's positions, one by one."""
    twin = PlainPatches(model)
    request = RunSweep(ModelReference(""), (LONG,), sites=("resid_pre",), spans=(ANIMAL, LAST))
    plan = plan_sweep(model, request, LIMITS)
    where = {"animal": (range(5, 8), range(3, 6)), "sat on": (range(9, 15), range(7, 13))}
    assert [(span.name, span.clean, span.corrupt) for span in plan.pairs[0].spans] == [
        (name, *ranges) for name, ranges in where.items()
    ]
    assert len(plan.grid) == 2 * model.layer_count
    for entry, base, other, logits in rows_of(model, plan):
        assert entry.position is None
        clean, corrupt = where[entry.name]
        into, out_of = (corrupt, clean) if base == plan.pairs[0].corrupt else (clean, corrupt)
        place = ("in", entry.layer)
        rows = twin.seen(other, place)[list(out_of)]
        torch.testing.assert_close(logits, twin.logits(base, {place: putting(rows, into)}), **TOLERANCE)


def test_every_site_takes_spans(load: Callable[[str], LanguageModel]) -> None:
    """Both kernels agree, by head and by layers together; a query's weights move only where positions do not."""
    model = load("llama")
    sites = ("attn_out", "resid_mid", "mlp_out", "resid_post", "q", "k", "v", "z")
    for change in ({}, {"window_layers": 2}, {"source": "zero"}):
        request = RunSweep(ModelReference(""), (LONG,), sites=sites, spans=(ANIMAL, LAST), **change)
        assert list(rows_of(model, plan_sweep(model, request, LIMITS)))
    aligned = RunSweep(ModelReference(""), (PAIR,), sites=("pattern",), spans=(PatchSpan("animal", "cat", "dog"),))
    assert list(rows_of(model, plan_sweep(model, aligned, LIMITS)))


def test_a_span_is_unchanged_where_both_prompts_begin_alike(load: Callable[[str], LanguageModel]) -> None:
    pair = PromptPair("the cat sat on", "the cat ran off it", "a", "b")
    spans = (
        PatchSpan("cat", "cat", "cat"),
        PatchSpan("beyond", Range(5, 10), Range(5, 10)),
        PatchSpan("moved", Range(1, 3), Range(2, 4)),
    )
    plan = plan_sweep(
        load("gpt2"), RunSweep(ModelReference(""), (pair,), sites=("resid_pre",), layers=(1,), spans=spans), LIMITS
    )
    assert {entry.name: plan.is_unchanged(entry, plan.pairs[0]) for entry in plan.grid} == {
        "cat": True, "beyond": False, "moved": False,
    }  # fmt: skip


def test_spans_of_several_pairs_lie_where_each_pair_has_them(load: Callable[[str], LanguageModel]) -> None:
    pairs = (LONG, PromptPair("my cat", "no dogs, one dog", "a", "b"))
    with pytest.raises(ActstoreError, match="occurs 2 times"):
        plan_sweep(load("gpt2"), RunSweep(ModelReference(""), pairs, spans=(ANIMAL,)), LIMITS)
    pairs = (LONG, PromptPair("my cat", "no cats, one dog", "a", "b"))
    plan = plan_sweep(load("gpt2"), RunSweep(ModelReference(""), pairs, spans=(ANIMAL,)), LIMITS)
    assert [(pair.spans[0].clean, pair.spans[0].corrupt) for pair in plan.pairs] == [
        (range(5, 8), range(3, 6)), (range(4, 7), range(14, 17)),
    ]  # fmt: skip
    cells = plan.cells(plan.grid[0], plan.pairs[1], "denoise")
    assert [cell.position for cell in cells] == [14, 15, 16]
    assert plan.length == 17


SPANS = {"spans": (ANIMAL,), "pairs": (LONG,)}


@pytest.mark.parametrize(
    ("change", "reason", "field", "value", "allowed"),
    [
        ({"pairs": (LONG,)}, "PROMPT_LENGTHS_DIFFER", "corrupt", "13 tokens", "15 tokens"),
        ({"spans": (PatchSpan("x", "cat", "dogs"),)}, "ARGUMENT_INVALID", "spans", "dogs", "once in the prompt"),
        ({"spans": (PatchSpan("x", "t", "dog"),)}, "ARGUMENT_INVALID", "spans", "t", "once in the prompt"),
        ({"spans": (PatchSpan("x", "cat", "og"),)}, "PROMPT_LENGTHS_DIFFER", "spans", "2 tokens", "3 tokens"),
        (
            {"spans": (PatchSpan("x", Range(3, 3), "dog"),)},
            "ARGUMENT_INVALID",
            "spans",
            "3..3",
            "at least one token within 0..15",
        ),
        ({"spans": (PatchSpan("x", "cat", Range(10, 14)),)}, "ARGUMENT_INVALID", "spans", "10..14", "within 0..13"),
        ({"spans": (ANIMAL, ANIMAL)}, "ARGUMENT_INVALID", "spans", "animal", "a different name"),
        ({"spans": (ANIMAL,) * 257}, "LIMIT_EXCEEDED", "spans", "257", "at most 256"),
        ({"positions": "last"}, "ARGUMENT_INVALID", "positions", "last", "none, if there are spans"),
        ({"only_positions": (3,)}, "ARGUMENT_INVALID", "only_positions", "3", "none, if there are spans"),
        ({"sites": ("pattern",)}, "ARGUMENT_INVALID", "sites", "pattern", "sites other"),
    ],
)
def test_what_spans_are_refused_for(
    load: Callable[[str], LanguageModel], change: dict[str, object], reason: str, field: str, value: str, allowed: str
) -> None:
    request = (
        RunSweep(ModelReference(""), (LONG,)) if change.keys() == {"pairs"} else RunSweep(ModelReference(""), **SPANS)
    )
    with pytest.raises(ActstoreError) as refusal:
        plan_sweep(load("gpt2"), replace(request, **change), LIMITS)
    assert (refusal.value.reason, refusal.value.details["field"]) == (reason, field)
    assert str(refusal.value.details["value"]) == value
    assert allowed in str(refusal.value.details["allowed"])
