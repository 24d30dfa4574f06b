"""Ablates sites and heads, and returns the model's loss without each: replaced by zero, by a mean, or by another text's
activations.

Special tokens are excluded: activations at a BOS are left unchanged, means do not include them, and the loss is over
tokens that follow other tokens. So an effect measures what the site does to text, and not the loss of an attention
sink.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actstore_api.records.model import AblateSites, AblateSitesAnswer
from actstore_api.records.terms import Prompt, Provenance
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import HEAD_KINDS, Site, parse_site
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers, Resources
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.passes.stored_sample import batches, check_sample, sample_sequences
from actstore_worker.live.passes.text import LiveText, read_text
from actstore_worker.live.passes.text_batches import Gifts, Rows, batches_of, draw_gifts, rows_of
from actstore_worker.models.chosen import chosen_heads, chosen_layers
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal
from actstore_worker.models.taps import Edit, writing
from actstore_worker.provenance import live_provenance, with_snapshot

# The default kinds; those that a model does not have are skipped.
_DEFAULT = ("attn_out", "mlp_out", "z")
# Kinds that can be read but not written: a sum that no module returns, and attention weights, which have already been
# used.
_UNWRITTEN = ("resid_mid", "pattern")
# The replacement values of a site: [row, position, width], or one row for all.
_Values = Mapping[Site, Float[Tensor, "row position width"] | Float[Tensor, " width"]]


def ablate_sites(
    passes: Passes, snapshot: Snapshot | None, question: AblateSites, limits: LiveLimits
) -> AblateSitesAnswer:
    """Measure the loss after ablating each site or head separately.

    `snapshot`: the run over whose stored text the mean is computed; None: over the texts.

    Errors: BadRequest for an encoder, for texts without a non-special token that is followed by another, for sites that
    do not exist or cannot be written, for resampling a single text; PROMPT_LENGTHS_DIFFER for resampling texts of
    different lengths by position; LIMIT_EXCEEDED for more ablated sites x tokens than one question may have.
    """
    model = passes.model
    check_causal(model, "it does not predict next tokens, so there is no loss")
    _check_source(question, limits)
    parts = _parts(model, question)
    texts = _read(passes, question, len(parts), limits)
    _check_counted(texts)
    passes.expect((1 + len(parts)) * sum(map(len, texts)))
    values = _source(passes, snapshot, question, texts, parts, limits)
    losses = _Losses(len(texts), len(parts))
    for rows in batches_of(texts, limits.tokens_per_slice, model.device):
        losses.add_base(rows, passes.log_probabilities(rows.ids))
        for layer, chosen in _by_layer(parts).items():
            there = values(rows, layer)
            for group in _split(chosen, max(1, limits.tokens_per_slice // rows.ids.numel())):
                losses.add(rows, group, _without(passes, rows, [parts[number] for number in group], there))
    live = live_provenance(model)
    return _answer(parts, losses, live if snapshot is None else with_snapshot(live, snapshot))


def _read(passes: Passes, question: AblateSites, parts: int, limits: LiveLimits) -> list[LiveText]:
    """Tokenizes the texts one by one, until there is a wrong one, too many tokens, or no caller."""
    texts: list[LiveText] = []
    tokens = 0
    for text in _given(question.texts):
        passes.check()
        texts.append(read_text(passes.model, text, question.prepend_bos, "texts"))
        tokens += len(texts[-1])
        _check_size(parts, tokens, limits)
    return texts


class _Losses:
    """Sums over the tokens that count, in nats, in float64."""

    def __init__(self, texts: int, parts: int) -> None:
        self.base, self.tokens, self.parts = np.zeros(texts), np.zeros(texts, np.int64), np.zeros(parts)

    def add_base(self, rows: Rows, logs: Float[Tensor, "row followed"]) -> None:
        self.base[list(rows.numbers)] = -_counted(rows, logs).sum(-1).numpy(force=True)
        self.tokens[list(rows.numbers)] = rows.counted.sum(-1).numpy(force=True)

    def add(self, rows: Rows, parts: Sequence[int], logs: Float[Tensor, "part row followed"]) -> None:
        self.parts[list(parts)] -= _counted(rows, logs).sum((-2, -1)).numpy(force=True)


def _counted(rows: Rows, logs: Float[Tensor, "*part row followed"]) -> Float[Tensor, "*part row followed"]:
    return logs.double().masked_fill(~rows.counted, 0.0)


def _without(passes: Passes, rows: Rows, parts: Sequence[Site], values: _Values) -> Float[Tensor, "part row followed"]:
    """Runs all ablations of a batch in one pass, on one copy of the rows for each."""
    model, count = passes.model, len(rows.ids)
    places: dict[Site, list[tuple[int, Site]]] = {}
    for number, part in enumerate(parts):
        places.setdefault(part.whole, []).append((number, part))
    edits = {site: _edit(model, site, found, rows.plain, values[site]) for site, found in places.items()}
    logs = passes.log_probabilities(rows.ids.repeat(len(parts), 1), writing(model, edits))
    return logs.view(len(parts), count, -1)


def _edit(
    model: LanguageModel,
    site: Site,
    parts: Sequence[tuple[int, Site]],
    where: Bool[Tensor, "row position"],
    value: Tensor,
) -> Edit:
    """`parts`: for each copy of the rows, which part of the site is ablated."""
    heads = model.head_counts[site.kind] if site.kind in HEAD_KINDS else 1

    def write(found: Float[Tensor, "copied_row position head width_of_head"]) -> None:
        given = value.to(found.dtype).unflatten(-1, (heads, -1)).expand(*where.shape, heads, -1)
        for number, part in parts:
            copy = found[number * len(where) : (number + 1) * len(where)]
            chosen = slice(None) if part.head is None else slice(part.head, part.head + 1)
            copy[:, :, chosen] = torch.where(where[..., None, None], given[:, :, chosen], copy[:, :, chosen])

    return write


_Source = Callable[[Rows, int], _Values]


def _source(
    passes: Passes,
    snapshot: Snapshot | None,
    question: AblateSites,
    texts: Sequence[LiveText],
    parts: Sequence[Site],
    limits: LiveLimits,
) -> _Source:
    """What returns, for a batch of the texts and a layer, the replacement values at its sites."""
    model = passes.model
    sites = {part.whole for part in parts}
    if question.ablation == "resample":
        _check_resampled(texts, same_position=question.same_position)
        gifts = draw_gifts(texts, question.seed, same_position=question.same_position)
        return lambda rows, layer: _given_values(passes, texts, gifts, rows, _of_layer(sites, layer))
    if question.ablation == "mean":
        means = _means(passes, sites, _plain_rows(snapshot, question, texts, model, limits))
        return lambda _rows, _layer: means
    zeros = {site: torch.zeros(model.site_width(site, 0), device=model.device) for site in sites}
    return lambda _rows, _layer: zeros


def _plain_rows(
    snapshot: Snapshot | None,
    question: AblateSites,
    texts: Sequence[LiveText],
    model: LanguageModel,
    limits: LiveLimits,
) -> Iterator[tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]]:
    """Token ids, and which of them the mean includes."""
    if snapshot is None:
        for rows in batches_of(texts, limits.tokens_per_slice, model.device):
            yield rows.ids, rows.plain
        return
    assert question.stored is not None  # noqa: S101  or there would be no snapshot
    sample = sample_sequences(snapshot, question.stored.tokens)
    for batch in batches(sample, limits.tokens_per_slice, model.device):
        yield batch.ids, batch.kept


def _means(
    passes: Passes,
    sites: set[Site],
    text: Iterable[tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]],
) -> dict[Site, Float[Tensor, " width"]]:
    """Means at sites, accumulated in float64 during the passes."""
    sums: dict[Site, Tensor] = {}
    count = 0
    for ids, plain in text:

        def add(site: Site, found: Tensor, plain: Tensor = plain) -> None:
            here = found[plain].sum(0, dtype=torch.float64)
            sums[site] = sums[site] + here if site in sums else here

        passes.visit(ids, sites, add)
        count += int(plain.sum())
    return {site: (total / count).float() for site, total in sums.items()}


def _given_values(
    passes: Passes, texts: Sequence[LiveText], gifts: Gifts, rows: Rows, sites: list[Site]
) -> dict[Site, Float[Tensor, "row position width"]]:
    """The activations at the sites in the paired texts, moved to the positions that they replace."""
    givers = rows_of(texts, [int(gifts.giver[number]) for number in rows.numbers], rows.ids.device)
    seen = passes.observe(givers.ids, sites)
    places = np.zeros(tuple(rows.ids.shape), np.int64)
    for row, number in enumerate(rows.numbers):
        places[row, : len(gifts.positions[number])] = gifts.positions[number]
    index = torch.from_numpy(places).to(rows.ids.device)
    each = torch.arange(len(index), device=index.device)[:, None]
    return {site: found[each, index] for site, found in seen.items()}


def _of_layer(sites: set[Site], layer: int) -> list[Site]:
    return [site for site in sites if site.layer == layer]


def _by_layer(parts: Sequence[Site]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for number, part in enumerate(parts):
        found.setdefault(part.layer, []).append(number)
    return found


def _split(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _parts(model: LanguageModel, question: AblateSites) -> list[Site]:
    """Sites and heads in order of layer, then kind in the order of a forward pass, then head."""
    there = (*model.kinds, *HEAD_KINDS)
    layers, found = chosen_layers(model, question.layers), set()
    for text in question.sites or [kind for kind in _DEFAULT if kind in there]:
        if text in there:
            heads = chosen_heads(model, text, question.heads) if text in HEAD_KINDS else (None,)
            chosen = {Site(layer, text, head) for layer in layers for head in heads}
        else:
            chosen = {parse_site(text, there, model.layer_count, model.head_counts)}
        _check_written(text, chosen, there)
        found |= chosen
    return sorted(found, key=lambda site: (site.layer, there.index(site.kind), -1 if site.head is None else site.head))


def _check_written(text: str, chosen: Iterable[Site], kinds: Sequence[str]) -> None:
    if any(site.kind in _UNWRITTEN for site in chosen):
        raise BadRequest(
            f"{text} cannot be ablated: it does not write into the residual stream",
            reason="SITE_UNKNOWN",
            field="site",
            value=text,
            allowed=[kind for kind in kinds if kind not in _UNWRITTEN],
        )


def _given(texts: Sequence[Prompt]) -> Sequence[Prompt]:
    if not texts:
        raise BadRequest("no text was given", field="texts", value="0 texts", allowed="at least one text")
    return texts


def _check_size(parts: int, tokens: int, limits: LiveLimits) -> None:
    if parts * tokens > limits.ablated_tokens:
        raise BadRequest(
            f"{parts} parts would be ablated on {tokens} tokens each; parts x tokens are at most "
            f"{limits.ablated_tokens}: "
            "name fewer sites or layers, or give less text",
            reason="LIMIT_EXCEEDED",
            field="texts",
            value=f"{parts * tokens} tokens",
            allowed=f"at most {limits.ablated_tokens} tokens",
        )


def _check_counted(texts: Sequence[LiveText]) -> None:
    if not any((~text.special[:-1]).any() for text in texts):
        raise BadRequest(
            "no token of the texts, apart from special ones, is followed by another, so there is no loss",
            reason="NOTHING_LEFT",
            field="texts",
            value=f"{len(texts)} texts",
            allowed="a text of at least two tokens",
        )


def _check_source(question: AblateSites, limits: LiveLimits) -> None:
    """Refuses arguments that belong to another ablation, instead of ignoring them."""
    run = "" if question.stored is None else question.stored.run
    for given, field, ablation in ((run, "stored.run", "mean"), (question.same_position, "same_position", "resample")):
        if given and question.ablation != ablation:
            message = f"{field} is for ablation {ablation}, not for {question.ablation}"
            raise BadRequest(message, field=field, value=given, allowed=f"none, or ablation {ablation}")
    if question.stored is not None:
        check_sample(question.stored, limits.check_tokens)


def _check_resampled(texts: Sequence[LiveText], *, same_position: bool) -> None:
    if len(texts) < 2:
        message = "resampling needs another text to take activations from, and only one was given"
        raise BadRequest(message, field="texts", value="1 text", allowed="at least two texts")
    lengths = sorted({len(text) for text in texts})
    if same_position and len(lengths) > 1:
        raise BadRequest(
            f"resampling with same_position needs texts with the same number of tokens; they have {lengths[0]} to "
            f"{lengths[-1]}",
            reason="PROMPT_LENGTHS_DIFFER",
            field="texts",
            value=f"{lengths[-1]} tokens",
            allowed=f"{lengths[0]} tokens",
        )
    for text in texts:
        if text.special.all():
            shown = "".join(text.texts)
            message = f"text {shown!r} has special tokens only, so there is nothing to resample from it"
            raise BadRequest(message, reason="NOTHING_LEFT", field="texts", value=shown, allowed="text")


def _answer(parts: Sequence[Site], losses: _Losses, provenance: Provenance) -> AblateSitesAnswer:
    tokens = int(losses.tokens.sum())
    base, ablated = losses.base.sum() / tokens, losses.parts / tokens
    with np.errstate(invalid="ignore"):
        by_text = losses.base / losses.tokens
    return AblateSitesAnswer(
        effects=pa.table(
            {
                "site": pa.array(map(str, parts), pa.string()),
                "kind": pa.array([part.kind for part in parts], pa.string()),
                "layer": pa.array([part.layer for part in parts], pa.int32()),
                "head": pa.array([part.head for part in parts], pa.int32()),
                "loss": pa.array(ablated),
                "change": pa.array(ablated - base),
            }
        ),
        texts=pa.table(
            {
                "text": pa.array(range(len(by_text)), pa.int32()),
                "tokens": pa.array(losses.tokens),
                "loss": pa.array(by_text, from_pandas=True),
            }
        ),
        loss=float(base),
        tokens=tokens,
        provenance=provenance,
    )


def _ablate_sites(given: Resources, question: AblateSites) -> AblateSitesAnswer:
    """Only means use stored text."""
    stored = question.stored if question.ablation == "mean" else None
    return ablate_sites(given.passes, given.sampled(stored), question, given.limits)


ANSWERS: Answers = {AblateSites: _ablate_sites}
