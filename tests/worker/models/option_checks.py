"""What holds of every model that is not refused, whatever its configuration: for tests that try options."""

import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from actstore_api.records.model import GetTextLens, GetWeightNorms
from actstore_api.records.terms import ModelReference
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.datasets.batching import windows
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.saes.lens_of_directions import fold_final_norm
from actstore_worker.live.texts.lens_of_text import lens_text
from actstore_worker.live.texts.weight_norms import weight_norms
from actstore_worker.models.families.attention_only import AttentionOnlyForCausalLM
from actstore_worker.models.files.options import unset_call_options
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe, visit
from actstore_worker.models.turns import Turns, share
from actstore_worker.models.weights import layer_weights
from actstore_worker.patching.direct import direct_shares
from actstore_worker.patching.kernels.full import Cell, FullForward, Patch
from actstore_worker.patching.kernels.resumed import Resumed
from tests.made_models.plain_model import PlainModel
from tests.worker.patching.recorded import every_site, two_runs

# Longer than any window here, and of every way to share a row or a batch.
LENGTHS = (3, 31, 7, 1, 20, 12, 26, 8, 9)
TEXT = "the cat"
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
_CLASSES = {"attention_only": AttentionOnlyForCausalLM, "bert": AutoModel}
# Sites that the plain model finds in every family, and those that it does not know of these.
_PLAIN = ("resid_pre", "attn_out", "z", "resid_mid", "mlp_out", "resid_post")
_NOT_PLAIN = {"opt": ("z", "resid_mid", "mlp_out"), "bert": _PLAIN[1:]}


def plain_model(folder: Path) -> PlainModel:
    """By transformers alone, with the attention that honours every option."""
    config = AutoConfig.from_pretrained(folder)
    unset_call_options(config)
    build = _CLASSES.get(config.model_type, AutoModelForCausalLM)
    return PlainModel(build.from_pretrained(folder, config=config, attn_implementation="eager").eval())


def check_sites(model: LanguageModel, plain: PlainModel) -> None:
    """Captures, and the output, against plain hooks on each text alone."""
    ids = list(range(5, 5 + min(13, model.context_length)))
    sites = _plain_sites(model)
    for site, seen in observe(model, torch.tensor([ids]), None, sites).items():
        _close(seen[0], torch.from_numpy(plain.at(site.kind, site.layer, ids)), site)
    if model.family.causal:
        with torch.inference_mode():
            logits = model.module(input_ids=torch.tensor([ids])).logits[0]
        _close(logits, torch.from_numpy(plain.logits(ids)), "logits")


def check_neighbours(model: LanguageModel) -> None:
    """A token has the vector that it has where its sequence is alone: padded and packed, whatever is beside it, and
    whatever ran before.
    """
    lengths = [min(length, model.context_length) for length in LENGTHS]
    sites = [Site(layer, kind) for layer in range(model.layer_count) for kind in (*model.kinds, "z")]
    tokens = _sequences(lengths)
    alone = [observe(model, _ids(tokens, number), None, sites) for number in range(len(lengths))]
    packable = model.family.causal and model.family.name != "opt"  # of OPT, packing is refused
    for row_tokens, size in [(None, 2), (None, len(lengths)), *([(model.context_length, 2)] if packable else [])]:
        for window in windows(tokens, len(lengths), size, row_tokens):
            for batch in window.batches:
                inside, seen = torch.from_numpy(batch.inside), dict[Site, Tensor]()
                mask = None if model.family.causal else inside
                places = None if batch.position_ids is None else torch.from_numpy(batch.position_ids)
                visit(model, torch.from_numpy(batch.ids), mask, sites, seen.__setitem__, places)
                for site in sites:
                    expected = torch.cat([alone[number][site][0] for number in batch.sequences.numbers])
                    _close(seen[site][inside], expected, site)


def check_written(model: LanguageModel, plain: PlainModel) -> None:
    """A text written over a cache, a token at a time, up to the end of the context."""
    passes, cache = Passes(share(model, Turns()), Event()), DynamicCache()
    written, fresh = [5, 6, 7], [5, 6, 7]
    with torch.inference_mode():
        while len(written) < model.context_length:
            logits = passes.next_logits(torch.tensor([fresh]), cache)[0]
            fresh = [int(logits.argmax())]
            written += fresh
    for end in (3, len(written) // 2, len(written) - 1):
        last = torch.from_numpy(plain.logits(written[:end]))[-1]
        assert last[written[end]] > last.max() - 1e-4  # of tokens as likely as each other, any


def check_patches(model: LanguageModel, plain: PlainModel) -> None:
    """Both kernels, on cells of every site, one and several at once; and shares of the logit difference."""
    length = min(13, model.context_length)
    base, source = two_runs(model, length)
    ids, other = base.tokens.tolist(), source.tokens.tolist()
    for site in _plain_sites(model):
        value = torch.from_numpy(plain.at(site.kind, site.layer, other))[4]
        # The plain model changes in place what goes into a module, which for resid_mid is the residual as well.
        if site.layer == 1 and site.kind != "resid_mid":
            expected = plain.logits(ids, {(site.kind, 1): _putting(value, 4)})[-1]
            _close(FullForward(model).run([Patch(base, source, (Cell(site, 4),))])[0], torch.from_numpy(expected), site)
    rng, cells = random.Random(0), list(_cells(model, length))
    patches = [Patch(base, source, (cell,)) for cell in rng.sample(cells, 40)]
    patches += [Patch(source, base, tuple(rng.sample(cells, 3))) for _ in range(20)]
    _close(Resumed(model).run(patches), FullForward(model).run(patches), "resumed")
    capped = getattr(model.config, "final_logit_softcapping", None)
    if not capped:  # shares are of what comes before a cap
        shares = direct_shares(model, base, (3, 9))
        found = sum(share.share for share in shares if share.part != "z")
        assert abs(found - float(base.logits[3] - base.logits[9])) < 1e-4


def check_live(model: LanguageModel, plain: PlainModel) -> None:
    passes, limits = Passes(share(model, Turns()), Event()), LiveLimits()
    last = model.layer_count - 1
    with torch.inference_mode():
        lensed = lens_text(
            passes, GetTextLens(ModelReference(model.name), TEXT, layers=(last,), k=model.vocabulary_size), limits
        )
        measured = weight_norms(
            passes, GetWeightNorms(ModelReference(model.name), (1,), text=TEXT, samples=4), limits, None
        )
    ids = [0, *model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    rows = lensed.tops.to_pydict()
    found = np.zeros((len(ids), model.vocabulary_size))
    found[rows["position"], rows["token"]] = rows["logit"]
    _close(torch.from_numpy(found), torch.from_numpy(plain.logits(ids)), "lens")
    assert all(np.isfinite(value) for value in measured.weights["frobenius"].to_pylist())
    # With the scale taken out, the folded direction is what the norm hands on.
    with torch.inference_mode():
        x = torch.linspace(-1, 2, model.d_model)
        shift = model.final_norm(torch.zeros_like(x))
        handed, folded = model.final_norm(x) - shift, fold_final_norm(model, x[None])[0]
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(handed, folded, dim=0), torch.tensor(1.0))


def check_heads(model: LanguageModel, layer: int = 1) -> None:
    """Weights by head make what the model's modules make of what they read: q, k and v, and attn_out of z."""
    ids = torch.tensor([[3, 5, 6, 7, 5, 9, 11, 2]])
    block = model.layers[layer]
    seen: dict[str, Tensor] = {}
    norm = block.get_submodule(model.family.attention_norm)
    hook = norm.register_forward_hook(lambda _m, _i, out: seen.setdefault("x", out))
    at = observe(model, ids, None, [Site(layer, kind) for kind in ("q", "k", "v", "z", "resid_pre")])
    observe(model, ids, None, [Site(layer, "attn_out")])
    hook.remove()
    weights = layer_weights(model, layer)
    for kind, (weight, bias) in {"q": weights.q, "k": weights.k, "v": weights.v}.items():
        made = torch.einsum("pd,hdk->phk", seen["x"][0], weight) + (0 if bias is None else bias)
        torch.testing.assert_close(made.flatten(1), at[Site(layer, kind)][0], rtol=1e-4, atol=1e-5)
    z = at[Site(layer, "z")][0].unflatten(-1, (model.head_count, -1))
    made = torch.einsum("phk,hkd->pd", z, weights.o[0]) + (0 if weights.o[1] is None else weights.o[1])
    theirs = block.get_submodule(model.family.from_z[0])(at[Site(layer, "z")])[0]
    torch.testing.assert_close(made, theirs, rtol=1e-4, atol=1e-5)
    resid = at[Site(layer, "resid_pre")][0]
    read = resid - resid.mean(-1, keepdim=True) if weights.attention_norm.centred else resid
    scale = (read.pow(2).mean(-1, keepdim=True) + epsilon(norm)).sqrt()
    folded = torch.einsum("pd,hdk->phk", resid / scale, weights.attention_norm.fold(weights.q[0]))
    plain = torch.einsum("pd,hdk->phk", seen["x"][0], weights.q[0])
    expected = plain - weights.attention_norm.folded_bias(weights.q[0])
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-3)


def epsilon(norm: Any) -> float:
    """Under whatever name the norm has it."""
    return float(next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)))


def _plain_sites(model: LanguageModel) -> list[Site]:
    kinds = [kind for kind in _PLAIN if kind in (*model.kinds, "z")]
    known = [kind for kind in kinds if kind not in _NOT_PLAIN.get(model.family.name, ())]
    return [Site(layer, kind) for layer in range(model.layer_count) for kind in known]


def _cells(model: LanguageModel, length: int) -> Iterator[Cell]:
    for site, position in product(every_site(model), range(length)):
        heads = range(model.head_counts[site.kind]) if site.kind in HEAD_KINDS else [None]
        yield from (Cell(Site(site.layer, site.kind, head), position) for head in heads)


def _putting(value: Tensor, position: int) -> Any:
    def put(found: Tensor) -> None:
        found[0, position] = value

    return put


def _sequences(lengths: Sequence[int]) -> TokenSequences:
    tokens = np.random.default_rng(0).integers(1, 250, sum(lengths)).astype(np.int32)
    numbers = np.arange(len(lengths))
    return TokenSequences(tokens, np.concatenate([[0], np.cumsum(lengths)]), numbers, numbers)


def _ids(tokens: TokenSequences, number: int) -> Tensor:
    return torch.from_numpy(tokens.slice(number, number + 1).tokens.astype(np.int64))[None]


def _close(found: Tensor, expected: Tensor, what: object) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        found.double() / scale, expected.double() / scale, **CLOSE, msg=lambda said: f"{what}: {said}"
    )
