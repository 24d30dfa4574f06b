"""Sweeps against TransformerLens, its bridge on the same folder with its own forward, and against plain hooks.

`test_attention_only.py` has the models of which TransformerLens's bridge knows nothing.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.made_models.plain_model import PlainModel
from tests.made_models.small_models import SAVERS

# Seven tokens and BOS; the windows of those that have one are five.
CLEAN, CORRUPT, ANSWERS = "abcdefg", "abXdefg", ("p", "q")
# Where the prompts differ, behind it, and at the end.
POSITIONS = (3, 5, 7)
# Not resid_mid: the bridge hooks what the MLP's norm reads, which leaves the stream itself as it was.
HOOKS = {kind: f"hook_{kind}" for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
HOOKS |= {kind: f"attn.hook_{kind}" for kind in ("q", "k", "v", "pattern", "z")}
# What plain hooks reach: of OPT, whose MLP is no module, not what that gives.
PLAIN = ("resid_pre", "attn_out", "mlp_out", "resid_post", "z")
TOLERANCE = 2e-5

Rows = Sequence[dict[str, Any]]
# logit(first answer) - logit(second) of patched runs: (base, source, rows of the sweep, of one site and layer).
Patched = Callable[[str, str, Rows], Sequence[float]]


@pytest.mark.filterwarnings("default")  # TransformerLens warns of its own deprecations
@pytest.mark.parametrize("name", SAVERS)
def test_every_cell_equals_transformer_lens_and_plain_hooks(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = SAVERS[name](tmp_path / name)
    model = load_model(ModelCatalog((tmp_path,)).find_model(name), device=torch.device("cpu"))
    pair = PromptPair(CLEAN, CORRUPT, *ANSWERS)
    *_, result = run_sweep(
        model, RunSweep(ModelReference(name), (pair,), sites=tuple(HOOKS), only_positions=POSITIONS), PatchingLimits()
    )
    assert isinstance(result, WholeSweep)
    rows = result.cells.to_pylist()
    assert {row["site"] for row in rows} == set(HOOKS)
    assert not any(row["unchanged"] for row in rows)

    ids = {text: [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in (CLEAN, CORRUPT)}
    answers = [model.tokenizer.convert_tokens_to_ids(answer) for answer in ANSWERS]
    lens = lens_patched(folder, ids, answers)
    plain = plain_patched(model.module, ids, answers)
    for (direction, site, layer), group in groupby(rows, lambda row: (row["direction"], row["site"], row["layer"])):
        some = list(group)
        base, source = (CORRUPT, CLEAN) if direction == "denoise" else (CLEAN, CORRUPT)
        found = [row["logit_difference"] for row in some]
        if (name, site) != ("opt", "pattern"):  # which the bridge shows, and computes on without it
            assert found == pytest.approx(lens(base, source, some), abs=TOLERANCE), (site, layer)
        if site in PLAIN and not (name == "opt" and site in ("mlp_out", "z")):
            assert found == pytest.approx(plain(base, source, some), abs=TOLERANCE), (site, layer)


def lens_patched(folder: Path, ids: dict[str, list[int]], answers: list[int]) -> Patched:
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    with torch.no_grad():
        caches = {text: bridge.run_with_cache(torch.tensor([tokens]))[1] for text, tokens in ids.items()}

    def patched(base: str, source: str, rows: Rows) -> Sequence[float]:
        """A row of the batch each."""
        name = f"blocks.{rows[0]['layer']}.{HOOKS[rows[0]['site']]}"

        def patch(activation: Tensor, hook: object) -> Tensor:
            changed = activation.clone()
            for number, row in enumerate(rows):
                place = (row["position"],) if row["head"] is None else (row["position"], row["head"])
                if row["site"] == "pattern":  # [batch, head, query, key]
                    place = place[::-1]
                changed[number, *place] = caches[source][name][0, *place]
            return changed

        with torch.no_grad():
            logits = bridge.run_with_hooks(torch.tensor([ids[base]] * len(rows)), fwd_hooks=[(name, patch)])[:, -1]
        first, second = logits.double()[:, answers].T
        return (first - second).tolist()

    return patched


def plain_patched(module: torch.nn.Module, ids: dict[str, list[int]], answers: list[int]) -> Patched:
    plain, heads = PlainModel(module), module.config.num_attention_heads
    there: dict[tuple[str, int, str], Tensor] = {}

    def difference(base: str, source: str, row: dict[str, Any]) -> float:
        kind, layer = row["site"], row["layer"]
        if (kind, layer, source) not in there:
            there[kind, layer, source] = torch.from_numpy(plain.at(kind, layer, ids[source]))
        value = there[kind, layer, source][row["position"]]

        def put(tensor: Tensor) -> None:
            written = tensor[0, row["position"]]
            if row["head"] is None:
                written.copy_(value)
            else:
                written.view(heads, -1)[row["head"]] = value.view(heads, -1)[row["head"]]

        first, second = plain.logits(ids[base], {(kind, layer): put})[-1, answers]
        return float(first - second)

    return lambda base, source, rows: [difference(base, source, row) for row in rows]
