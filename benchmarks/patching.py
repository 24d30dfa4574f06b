"""Compares activation patching with other libraries: `python -m benchmarks.patching --json`.

A model of Pythia-70M's shape with random weights, two prompts of 32 tokens that differ from the first token on;
resid_pre, attn_out, mlp_out and every head's z at every layer and position, in both directions. All sides compute the
same cells:

- actstore: a complete `run_sweep`: recording both prompts, every metric of every cell, and the audit.
- transformer_lens: HookedTransformer of 3.9 with the same weights, through `patching.generic_activation_patch`, one
  cell per forward pass with all logits.
- hooks: the model in transformers with a forward hook, one cell per pass, all logits.
- nnsight: as in its documentation, one trace per layer with an invoke per position; for resid_pre only.

The other libraries take minutes for all cells, so they run a random subset (seeded). Seconds per cell are compared, in
rounds in which all sides take turns.

Predicted, for resid_pre: naively 192 cells x 32 tokens x 6 layers with 6.3 MFLOP each, 232 GFLOP, and 316 more to
unembed every position. If each patch computes only what it can change, 41 GFLOP are left, and 10 to unembed one row per
cell: eleven times less. The audit takes 5 more, and a batch of some thousand tokens computes faster than one prompt.
`reuse` is the token-layers of full forward passes for every cell divided by those that were computed; its limit is
`reuse_limit`.

`service_overhead` is the seconds of a one-cell request through client, service, gateway and replica divided by those in
process, and `service_overhead_ms` their difference: four updates over four hops of some milliseconds each, and small
objects that are cached. The request's own work is two prompts, three patched runs, and the metrics.
"""

import argparse
import copy
import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.prompts import PairTokens
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from benchmarks.capture import MODEL, MODELS
from benchmarks.parts.service_overhead import service_overhead

LAYERS, D_MODEL, HEADS, VOCABULARY_SIZE = 6, 512, 8, 50_304
SITES = ("resid_pre", "attn_out", "mlp_out", "z")
POSITIONS, PEER_CELLS, ROUNDS = 32, 24, 5

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    direction: str
    site: str
    layer: int
    position: int
    head: int | None


@dataclass(frozen=True)
class Setting:
    """Token ids of both prompts, and those of the answers."""

    clean: Tensor
    corrupt: Tensor
    answers: tuple[int, int]

    def sides(self, direction: str) -> tuple[Tensor, Tensor]:
        return (self.corrupt, self.clean) if direction == "denoise" else (self.clean, self.corrupt)

    def metric(self, logits: Tensor) -> Tensor:
        last = logits[0, -1].double()
        return last[self.answers[0]] - last[self.answers[1]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments.add_argument("--cells", type=int, default=PEER_CELLS, help="that each peer runs of each site")
    options = arguments.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries trigger deprecation warnings
        found = measure(Path(folder), options.cells)
    for name, value in found.items():
        print(f"{name:<44}{value:>12,}" if not isinstance(value, str) else f"{name:<44}{value:>12}")
    if options.json:
        print(json.dumps(found))


def measure(folder: Path, peer_cells: int) -> dict[str, float | str]:
    save_model(folder / "pythia-70m-shape")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(ModelCatalog((folder,)).find_model("pythia-70m-shape"), device=device)
    pair, setting = prompts(model)
    chosen = choose(peer_cells)
    peers: dict[str, Callable[[Sequence[Place]], list[float]]] = {
        "transformer_lens": transformer_lens(model, setting),
        "hooks": hooks(model, setting),
    }
    if (nnsight := with_nnsight(model, setting)) is not None:
        peers["nnsight"] = nnsight
    found: dict[str, float | str] = {}
    errors = []
    for site in SITES:
        asked = {name: peer for name, peer in peers.items() if name != "nnsight" or site == "resid_pre"}
        compared = compare(model, pair, site, asked, chosen[site])
        found |= {f"{site}_cells": compared.cells, f"{site}_seconds": round(compared.seconds, 3)}
        for name, ratio in compared.ratios.items():
            found[f"ratio_to_{name}" + ("" if site == "resid_pre" else f"_{site}")] = round(ratio, 1)
        errors.append(compared.error)
        if site == "resid_pre":
            found["reuse"] = round(compared.reuse, 2)
            found["reuse_limit"] = round(reuse_limit(), 2)
    overhead, milliseconds = service_overhead(folder, model, pair)
    found |= {"service_overhead": round(overhead, 1), "service_overhead_ms": round(milliseconds, 1)}
    return found | {"max_abs_error": float(f"{max(errors):.2g}"), "device": device.type}


def reuse_limit() -> float:
    """For resid_pre: every layer after the patched one at every position from the patched one on. In the last layer:
    the last position, and a quarter (query, key and value projections) of the others. In the patched layer: the patched
    position, and a twelfth (the output projection) of later ones, of which the last layer needs one.
    """
    cells, last = LAYERS * POSITIONS, LAYERS - 1
    computed = 0.0
    for after in range(POSITIONS):
        computed += last * (1 + after / 12) + 1 + min(after, 1) / 12
        computed += sum(range(last)) * (after + 1) + last * (1 + 0.25 * after)
    return cells * LAYERS * POSITIONS / computed


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * D_MODEL,
        max_position_embeddings=2048,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODELS / MODEL).save_pretrained(folder)


def prompts(model: LanguageModel) -> tuple[PromptPair, Setting]:
    """Of words that are one token each, with no word at the same place in both."""
    words = [word for word in model.tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()]
    texts = sorted(word.replace("Ġ", " ") for word in words)
    rng = random.Random(0)
    clean, corrupt = ("".join(rng.sample(texts, POSITIONS)) for _ in range(2))
    clean_answer, corrupt_answer = texts[:2]
    wanted = (clean, corrupt, clean_answer, corrupt_answer)
    ids = [model.tokenizer.encode(text, add_special_tokens=False) for text in wanted]
    pair = PairTokens(tuple(ids[0]), tuple(ids[1]), ids[2][0], ids[3][0])
    if len(pair.clean) != POSITIONS or len(pair.corrupt) != POSITIONS or pair.first_difference:
        raise RuntimeError("the prompts are not what they should be")
    first, second = (torch.tensor([tokens], device=model.device) for tokens in (pair.clean, pair.corrupt))
    return PromptPair(clean, corrupt, clean_answer, corrupt_answer), Setting(first, second, (ids[2][0], ids[3][0]))


def choose(count: int) -> dict[str, list[Place]]:
    rng = random.Random(1)
    return {
        site: [
            Place(
                rng.choice(("denoise", "noise")),
                site,
                rng.randrange(LAYERS),
                rng.randrange(POSITIONS),
                rng.randrange(HEADS) if site == "z" else None,
            )
            for _ in range(count)
        ]
        for site in SITES
    }


@dataclass(frozen=True)
class Compared:
    """For one site: seconds of the whole sweep, and for each library its seconds per cell divided by ours; medians of
    rounds.
    """

    cells: int
    seconds: float
    ratios: dict[str, float]
    error: float
    reuse: float


def compare(
    model: LanguageModel,
    pair: PromptPair,
    site: str,
    peers: dict[str, Callable[[Sequence[Place]], list[float]]],
    places: Sequence[Place],
) -> Compared:
    """All sides take turns, round after round, because a machine's speed varies; the first round is the warm-up."""
    ours: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    error = 0.0
    for _ in range(ROUNDS + 1):
        seconds, result = timed(lambda: sweep(model, pair, site))
        ours.append(seconds)
        values = {
            Place(row["direction"], row["site"], row["layer"], row["position"], row["head"]): row["logit_difference"]
            for row in result.cells.to_pylist()
        }
        for name, peer in peers.items():
            taken, answers = timed(lambda peer=peer: peer(places))
            ratios[name].append(taken / len(places) / (seconds / len(values)))
            error = max(error, *(abs(values[place] - value) for place, value in zip(places, answers, strict=True)))
    reuse = result.audit.token_layers_full / result.audit.token_layers
    medians = {name: median(found[1:]) for name, found in ratios.items()}
    return Compared(len(values), median(ours[1:]), medians, error, reuse)


def sweep(model: LanguageModel, pair: PromptPair, site: str) -> WholeSweep:
    request = RunSweep(ModelReference(model.name), (pair,), sites=(site,), prepend_bos=False)
    *_, result = run_sweep(model, request, PatchingLimits())
    if not isinstance(result, WholeSweep):
        raise TypeError("a sweep ended without a result")
    return result


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def hooks(model: LanguageModel, setting: Setting) -> Callable[[Sequence[Place]], list[float]]:
    """Modules by transformers' own names. The source runs are recorded before the clock starts."""
    parts = {"resid_pre": "", "attn_out": ".attention", "mlp_out": ".mlp", "z": ".attention.dense"}

    @torch.inference_mode()
    def run(places: Sequence[Place]) -> list[float]:
        return [one(place) for place in places]

    def one(place: Place) -> float:
        base = setting.sides(place.direction)[0]
        module = model.module.get_submodule(f"gpt_neox.layers.{place.layer}{parts[place.site]}")
        is_input = place.site in ("resid_pre", "z")
        width = slice(None) if place.head is None else slice(place.head * 64, (place.head + 1) * 64)

        def attach(change: Callable[[Tensor], None]) -> Any:
            if is_input:
                return module.register_forward_pre_hook(lambda _, inputs: change(inputs[0]))
            return module.register_forward_hook(lambda _, __, out: change(out[0] if type(out) is tuple else out))

        def patch(found: Tensor) -> None:
            there = cache[place.direction, place.site, place.layer]
            found[0, place.position, width] = there[place.position, width]

        handle = attach(patch)
        try:
            return float(setting.metric(model.module(base, use_cache=False).logits))
        finally:
            handle.remove()

    cache: dict[tuple[str, str, int], Tensor] = {}
    fill(model, setting, parts, cache)
    return run


@torch.inference_mode()
def fill(
    model: LanguageModel, setting: Setting, parts: dict[str, str], cache: dict[tuple[str, str, int], Tensor]
) -> None:
    for direction in ("denoise", "noise"):
        handles = []
        for site, part in parts.items():
            for layer in range(LAYERS):
                module = model.module.get_submodule(f"gpt_neox.layers.{layer}{part}")
                key = direction, site, layer
                if site in ("resid_pre", "z"):
                    handles.append(module.register_forward_pre_hook(keeping_input(cache, key)))
                else:
                    handles.append(module.register_forward_hook(keeping_output(cache, key)))
        model.module(setting.sides(direction)[1], use_cache=False)
        for handle in handles:
            handle.remove()


def keeping_input(cache: dict[tuple[str, str, int], Tensor], key: tuple[str, str, int]) -> Callable[..., None]:
    def keep(_module: object, inputs: tuple[Tensor, ...]) -> None:
        cache[key] = inputs[0][0].clone()

    return keep


def keeping_output(cache: dict[tuple[str, str, int], Tensor], key: tuple[str, str, int]) -> Callable[..., None]:
    def keep(_module: object, _inputs: object, out: Any) -> None:
        cache[key] = (out[0] if type(out) is tuple else out)[0].clone()

    return keep


def transformer_lens(model: LanguageModel, setting: Setting) -> Callable[[Sequence[Place]], list[float]]:
    import pandas as pd
    from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
    from transformer_lens.pretrained.weight_conversions.neox import convert_neox_weights

    config = model.config
    rotary = getattr(config, "rope_parameters", None) or {}
    lens = HookedTransformer(
        HookedTransformerConfig(
            n_layers=LAYERS, d_model=D_MODEL, d_head=D_MODEL // HEADS, n_heads=HEADS, d_mlp=4 * D_MODEL,
            d_vocab=VOCABULARY_SIZE, n_ctx=2048, act_fn="gelu", eps=config.layer_norm_eps, normalization_type="LN",
            positional_embedding_type="rotary", rotary_adjacent_pairs=False, parallel_attn_mlp=True,
            rotary_dim=int(rotary.get("partial_rotary_factor", 0.25) * D_MODEL // HEADS),
            default_prepend_bos=False, device=model.device.type,
        )
    )  # fmt: skip
    lens.load_state_dict(convert_neox_weights(model.module, lens.cfg), strict=False)
    with torch.inference_mode():
        caches = {name: lens.run_with_cache(setting.sides(name)[1])[1] for name in ("denoise", "noise")}
    setters = {
        "z": (patching.layer_pos_head_vector_patch_setter, "z", ("layer", "pos", "head")),
        **{
            site: (patching.layer_pos_patch_setter, site, ("layer", "pos"))
            for site in ("resid_pre", "attn_out", "mlp_out")
        },
    }

    @torch.inference_mode()
    def run(places: Sequence[Place]) -> list[float]:
        found: dict[Place, float] = {}
        for direction in {place.direction for place in places}:
            chosen = [place for place in places if place.direction == direction]
            setter, name, axes = setters[chosen[0].site]
            rows = [(place.layer, place.position, place.head)[: len(axes)] for place in chosen]
            answers = patching.generic_activation_patch(
                lens, setting.sides(direction)[0], caches[direction], setting.metric, setter, name,
                index_df=pd.DataFrame(rows, columns=list(axes)),
            )  # fmt: skip
            found |= dict(zip(chosen, answers.tolist(), strict=True))
        return [found[place] for place in places]

    return run


def with_nnsight(model: LanguageModel, setting: Setting) -> Callable[[Sequence[Place]], list[float]] | None:
    """None if it is not installed."""
    try:
        import nnsight
    except ImportError as error:
        print(f"LEFT OUT, nnsight is not installed: {error}")
        return None
    # A separate copy, because it replaces the modules' methods.
    traced = nnsight.LanguageModel(copy.deepcopy(model.module), tokenizer=model.tokenizer)
    sources = {}
    for direction in ("denoise", "noise"):
        with traced.trace(setting.sides(direction)[1]):
            sources[direction] = [traced.gpt_neox.layers[layer].input.save() for layer in range(LAYERS)]

    def run(places: Sequence[Place]) -> list[float]:
        found: dict[Place, float] = {}
        for direction, layer in {(place.direction, place.layer): None for place in places}:
            chosen = [place for place in places if (place.direction, place.layer) == (direction, layer)]
            found |= dict(zip(chosen, layer_of(direction, layer, chosen), strict=True))
        return [found[place] for place in places]

    def layer_of(direction: str, layer: int, chosen: Iterable[Place]) -> list[float]:
        base, source = setting.sides(direction)[0], sources[direction][layer]
        clean, corrupt = setting.answers
        with traced.trace() as tracer:
            answers = nnsight.save([])
            for place in chosen:
                with tracer.invoke(base):
                    traced.gpt_neox.layers[layer].input[:, place.position] = source[:, place.position]
                    last = traced.lm_head.output[0, -1].double()
                    answers.append(last[clean] - last[corrupt])
        return [float(answer) for answer in answers]

    return run


if __name__ == "__main__":
    main()
