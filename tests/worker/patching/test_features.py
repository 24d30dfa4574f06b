"""Patched SAE features against SAELens's encode and decode in a plain hook; and what must hold for every SAE."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep, Screen
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.sae_features import active_features
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.plan import SweepPlan, plan_sweep
from actstore_worker.patching.sweep import run_sweep
from actstore_worker.sae.formats.loading import load_sae
from tests.made_models.small_models import D_MODEL, save_gpt2, save_llama, save_neox, save_sae
from tests.worker.patching.plain_patches import TOLERANCE, PlainPatches, putting, rows_of

PAIR = PromptPair("the cat sat", "the dog ran", "a", "b")
FIRST_DIFFERENCE = 5
LIMITS = PatchingLimits()
SITE, PLACE = "blocks.1.hook_resid_post", ("out", 1)
# Architecture and normalisation: each way in which an SAE takes its scale.
SAES = {
    "standard": ("standard", "none"),
    "normed": ("standard", "layer_norm"),
    "rescaled": ("topk", "constant_norm_rescale"),
    "jumprelu": ("jumprelu", "none"),
}
Load = Callable[[str], LanguageModel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, save in {"gpt2": save_gpt2, "llama": save_llama, "neox": save_neox}.items():
        save(folder / name)
    for name, (architecture, normalisation) in SAES.items():
        save_sae(folder / name, architecture, normalize_activations=normalisation, site=SITE)
    save_sae(folder / "heads", "standard", site="blocks.1.attn.hook_z")
    save_sae(folder / "wide", "standard", d_in=2 * D_MODEL)
    save_sae(folder / "inner", "standard", site="blocks.1.mlp.hook_in")
    (folder / "store").mkdir()
    return folder


@pytest.fixture(scope="module")
def supplies(folder: Path) -> Supplies:
    return Supplies(open_bucket(str(folder / "store")), lambda name: load_sae(folder / name, name))


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    found = functools.partial(load_model, device=torch.device("cpu"))
    return functools.cache(lambda name: found(ModelCatalog((folder,)).find_model(name)))


def planned(model: LanguageModel, supplies: Supplies, sae: str, **how: object) -> SweepPlan:
    request = RunSweep(ModelReference(""), (PAIR,), sae=sae)
    return plan_sweep(model, replace(request, **how), LIMITS, supplies)


def saelens(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports deprecate each other
        from sae_lens import SAE
    return SAE.load_from_disk(str(folder), device="cpu")


class SaeLens:
    """What a hook makes of a row of the base run and one of the source run."""

    def __init__(self, folder: Path) -> None:
        self.sae = saelens(folder)

    @torch.no_grad()
    def patched(self, base: Tensor, source: Tensor, features: list[int], error: str, *, error_cell: bool) -> Tensor:
        """[width]"""
        there, mixed = self.sae.encode(source[None]), self.sae.encode(base[None])
        kept_error = base - self.decode(mixed, base)
        source_error = source - self.decode(there, base)
        if not error_cell:
            mixed = mixed.clone()
            mixed[0, features] = there[0, features]
        added = {"kept": kept_error, "dropped": torch.zeros_like(base), "patched": source_error}
        return self.decode(mixed, base) + (source_error if error_cell else added[error])

    def decode(self, features: Tensor, x: Tensor) -> Tensor:
        """In the scale of x: SAELens decodes in that of what it encoded last, once."""
        self.sae.encode(x[None])
        found: Tensor = self.sae.decode(features)[0]
        return found


@pytest.mark.parametrize("error", ["kept", "dropped", "patched"])
@pytest.mark.parametrize("name", SAES)
def test_every_row_is_what_saelens_makes_in_a_hook(
    folder: Path, supplies: Supplies, load: Load, name: str, error: str
) -> None:
    model, peer = load("gpt2"), SaeLens(folder / name)
    twin = PlainPatches(model)
    plan = planned(model, supplies, name, sae_error=error, only_positions=(2, 7, 11))
    rows = list(rows_of(model, plan))
    assert len(rows) == 2 * len(plan.grid) > 2 * 3 * 6
    for entry, base, source, logits in rows:
        assert (entry.site, entry.layer, entry.head) == ("features", 1, None)
        mine, other = (twin.seen(tokens, PLACE)[entry.position] for tokens in (base, source))
        features = list(entry.features) if entry.features is not None else list(range(64))
        row = peer.patched(mine, other, features, error, error_cell=entry.is_error)
        expected = twin.logits(base, {PLACE: putting(row[None], [entry.position])})
        torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_rows_are_the_features_that_are_active_in_either_run_and_two_more(
    folder: Path, supplies: Supplies, load: Load
) -> None:
    model, sae = load("gpt2"), saelens(folder / "standard")
    twin = PlainPatches(model)
    plan = planned(model, supplies, "standard")
    tokens = plan.pairs[0]
    for position in range(plan.length):
        with torch.no_grad():
            active = [sae.encode(twin.seen(ids, PLACE)[[position]])[0] > 0 for ids in (tokens.clean, tokens.corrupt)]
        expected = tuple((active[0] | active[1]).nonzero()[:, 0].tolist())
        entries = [entry for entry in plan.grid if entry.position == position]
        assert tuple(entry.feature for entry in entries) == (*expected, None, None)
        assert [(entry.name, entry.features) for entry in entries[-2:]] == [("together", None), ("error", ())]


@pytest.mark.parametrize("model_name", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("name", SAES)
def test_all_features_and_the_error_are_the_whole_site(
    supplies: Supplies, load: Load, model_name: str, name: str
) -> None:
    model = load(model_name)
    everywhere = planned(model, supplies, name, sae_error="patched", positions="all")
    site = plan_sweep(
        model, RunSweep(ModelReference(""), (PAIR,), sites=("resid_post",), layers=(1,), positions="all"), LIMITS
    )
    together = [logits for entry, *_, logits in rows_of(model, everywhere) if entry.name == "together"]
    for found, (*_, expected) in zip(together, rows_of(model, site), strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("receivers", [("q.2.1", "v.2"), ("logits",)], ids="+".join)
def test_all_features_and_the_error_send_what_the_whole_site_sends(
    supplies: Supplies, load: Load, receivers: tuple[str, ...]
) -> None:
    model = load("gpt2")
    asked = RunSweep(ModelReference(""), (PAIR,), sae="standard", sae_error="patched", receivers=receivers)
    whole = replace(asked, sae="", sae_error="kept", sites=("resid_post",), layers=(1,))
    (*_, of_features), (*_, expected) = (run_sweep(model, found, LIMITS, None, supplies) for found in (asked, whole))
    rows = [row for row in of_features.cells.to_pylist() if row["name"] == "together"]
    found = [row["logit_difference"] for row in rows]
    assert found == pytest.approx(expected.cells["logit_difference"].to_pylist(), abs=TOLERANCE["atol"])
    assert len({row["logit_difference"] for row in rows if not row["unchanged"]}) > 1


@pytest.mark.parametrize("name", SAES)
def test_the_error_kept_and_nothing_else_changed_is_the_base_run(supplies: Supplies, load: Load, name: str) -> None:
    """Features that are the same in both runs, before the prompts' first difference; and so with the error patched."""
    model = load("gpt2")
    for error in ("kept", "patched"):
        plan = planned(model, supplies, name, sae_error=error, only_positions=(FIRST_DIFFERENCE - 1,))
        assert all(plan.is_unchanged(entry, plan.pairs[0]) for entry in plan.grid)
        for _, base, _, logits in rows_of(model, plan):
            torch.testing.assert_close(logits, PlainPatches(model).logits(base), **TOLERANCE)
    dropped = planned(model, supplies, name, sae_error="dropped", only_positions=(1,))
    assert not any(dropped.is_unchanged(entry, dropped.pairs[0]) for entry in dropped.grid)


def test_zero_takes_features_out(folder: Path, supplies: Supplies, load: Load) -> None:
    model, sae = load("gpt2"), saelens(folder / "standard")
    twin = PlainPatches(model)
    plan = planned(model, supplies, "standard", features=(1, 5, 9), source="zero", positions="last")
    for entry, base, _, logits in rows_of(model, plan):
        x = twin.seen(base, PLACE)[[-1]]
        with torch.no_grad():
            active = sae.encode(x)
            gone = active[:, list(entry.features)] @ sae.W_dec[list(entry.features)]
            row = sae.decode(active) if entry.is_error else x - gone
        torch.testing.assert_close(logits, twin.logits(base, {PLACE: putting(row, [len(base) - 1])}), **TOLERANCE)


def test_features_of_heads_and_of_spans(supplies: Supplies, load: Load) -> None:
    """An SAE of all heads' z; and stretches of other positions, of which all tokens' features are patched."""
    model = load("gpt2")
    assert list(rows_of(model, planned(model, supplies, "heads")))
    pair = PromptPair("the cat sat on", "a dog sat on", "a", "b")
    spans = (PatchSpan("animal", "cat", "dog"),)
    plan = planned(model, supplies, "standard", sae_error="patched", pairs=(pair,), spans=spans)
    assert [entry.name for entry in plan.grid][-3:] == ["animal", "animal: together", "animal: error"]
    twin = PlainPatches(model)
    for entry, base, source, logits in rows_of(model, plan):
        if entry.name == "animal: together":
            clean, corrupt = (5, 6, 7), (3, 4, 5)
            into, out_of = (corrupt, clean) if base == plan.pairs[0].corrupt else (clean, corrupt)
            rows = twin.seen(source, PLACE)[list(out_of)]
            torch.testing.assert_close(logits, twin.logits(base, {PLACE: putting(rows, list(into))}), **TOLERANCE)


def test_features_beside_other_sites(supplies: Supplies, load: Load) -> None:
    plan = planned(load("gpt2"), supplies, "standard", features=(3,), sites=("z", "features"), positions="last")
    assert [entry.site for entry in plan.grid] == ["z"] * 12 + ["features"] * 3


def test_active_features_are_kept_whole(supplies: Supplies, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae, tokens = load("gpt2"), supplies.find_sae("standard"), list(range(1, 20))
    whole = active_features(model, sae, tokens)
    monkeypatch.setattr("actstore_worker.patching.inputs.sae_features._ROWS_AT_ONCE", 7)
    assert [found.keys() for found in active_features(model, sae, tokens)] == [found.keys() for found in whole]


@pytest.mark.parametrize(
    ("change", "reason", "field", "value", "allowed"),
    [
        ({"sae": "wide"}, "SAE_MISMATCH", "d_in", "32", "16"),
        ({"sae": "inner"}, "SAE_MISMATCH", "site", "mlp_input.1", "resid_pre.LAYER"),
        ({"sae": "standard", "features": (64,)}, "FEATURE_OUT_OF_RANGE", "features", "64", "0..63"),
        ({"sae": "standard", "features": (1,) * 16_385}, "LIMIT_EXCEEDED", "features", "16385", "at most 16384"),
        ({"sae": "", "sites": ("features",)}, "ARGUMENT_INVALID", "sae", "", "an SAE's name"),
        ({"sites": ("z",)}, "ARGUMENT_INVALID", "sites", "z", "features, if there is an SAE"),
        ({"screen": Screen(3)}, "ARGUMENT_INVALID", "sites", "features", "other sites, if there is a screen"),
    ],
)
def test_what_features_are_refused_for(
    supplies: Supplies, load: Load, change: dict[str, object], reason: str, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ActstoreError) as refusal:
        planned(load("gpt2"), supplies, **{"sae": "standard", **change})
    assert (refusal.value.reason, refusal.value.details["field"]) == (reason, field)
    assert str(refusal.value.details["value"]) == value
    assert allowed in str(refusal.value.details["allowed"])


def test_transcoders_and_sweeps_of_too_many_features_are_refused(supplies: Supplies, load: Load) -> None:
    sae = supplies.find_sae("standard")
    crossing = replace(sae, output_site=replace(sae.site, layer=2))
    with pytest.raises(ActstoreError, match="a transcoder reads one site and writes another") as refusal:
        planned(load("gpt2"), replace(supplies, find_sae=lambda _: crossing), "standard")
    assert refusal.value.reason == "SAE_MISMATCH"
    with pytest.raises(ActstoreError, match="the sweep has 132 cells") as refusal:
        plan_sweep(
            load("gpt2"),
            RunSweep(ModelReference(""), (PAIR,), sae="standard", features=tuple(range(64)), positions="last"),
            PatchingLimits(cells=131),
            supplies,
        )
    assert refusal.value.reason == "LIMIT_EXCEEDED"
