"""Generates text with and without steering, and compares how both models rate both texts.

Texts are generated token by token with a cache of keys and values. Then both models read both texts in full, which
gives every token's log-probability under each, and the divergence of the steered prediction from the unsteered one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from actstore_api.records.model import SteerText, SteerTextAnswer
from actstore_api.records.terms import SaeFeature
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers, Resources
from actstore_worker.live.passes.running import LOGITS_MAX, UNCHANGED, Passes
from actstore_worker.live.passes.text import LiveText, read_text
from actstore_worker.live.texts.steer_site import Steering, direction_of, steered_positions
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal
from actstore_worker.provenance import live_provenance
from actstore_worker.sae.autoencoder import SparseAutoencoder

SEED_MAX = 2**63 - 1
STEERED, UNSTEERED = "steered", "unsteered"


@dataclass(frozen=True)
class _Seen:
    """For each generated token, the models' own log-probabilities, independent of the temperature."""

    steered: Float[Tensor, " token"]
    unsteered: Float[Tensor, " token"]
    kl: Float[Tensor, " token"]


def steer_text(
    passes: Passes, sae: SparseAutoencoder | None, question: SteerText, limits: LiveLimits
) -> SteerTextAnswer:
    """Let the model continue a text, steered and unsteered.

    Both texts use the same seed. The prompt's special tokens are never steered: activations at a BOS are many times
    larger than at text tokens, and inactive heads attend to it.

    Errors: BadRequest for an encoder, for what `direction_of` refuses, for a strength that is missing, not allowed or
    not a number, for a negative temperature; LIMIT_EXCEEDED for more tokens than one answer or the model's context can
    have; VALUE_OVERFLOW if the strength makes logits infinite.
    """
    model = passes.model
    check_causal(model, "it does not generate text")
    _check_site(question)
    _check_numbers(question)
    direction = direction_of(model, question, sae)
    text = read_text(model, question.prompt, question.prepend_bos, "prompt")
    _check_tokens(model, question.max_new_tokens, len(text), limits)
    passes.expect(2 * len(text))  # The model may end its text at any token.
    norm = _mean_norm(passes, text, direction.site)
    strength = (
        None if question.strength is None else question.strength * (norm if question.unit == "mean_norm" else 1.0)
    )
    special = torch.from_numpy(text.special).to(model.device)
    prompt, generated = steered_positions(question.positions, special)
    delta = direction.delta(question.mode, strength or 0.0)
    steering = Steering(model, direction.site, delta, prompt, generated)
    ways: dict[str, Steering | None] = {STEERED: steering, UNSTEERED: None}
    written = {name: _write(passes, text.ids, way, question) for name, way in ways.items()}
    seen = {name: _see(passes, (*text.ids, *tokens), len(text), steering) for name, tokens in written.items()}
    return SteerTextAnswer(
        tokens=pa.concat_tables([_table(model, name, len(text), written[name], seen[name]) for name in written]),
        prompt=text.table(steered=pa.array(prompt.numpy(force=True), pa.bool_())),
        steered_text=_decoded(model, written[STEERED]),
        unsteered_text=_decoded(model, written[UNSTEERED]),
        site=str(direction.site),
        mean_norm=norm,
        strength=strength,
        provenance=live_provenance(model, sae),
    )


def _mean_norm(passes: Passes, text: LiveText, site: Site) -> float:
    """The mean L2 norm over tokens that are not special; over all tokens of a text without such."""
    found = passes.observe(text.on(passes.model.device), [site])[site][0].float()
    plain = torch.from_numpy(~text.special).to(found.device)
    rows = found[plain] if bool(plain.any()) else found
    return float(torch.linalg.vector_norm(rows, dim=-1).double().mean())


def _write(passes: Passes, prompt: Sequence[int], steering: Steering | None, question: SteerText) -> list[int]:
    """The tokens that follow, the model's end token included."""
    cache, ends = DynamicCache(), _end_ids(passes)
    generator = torch.Generator().manual_seed(question.seed)
    found: list[int] = []
    fresh, first = list(prompt), 0
    while len(found) < question.max_new_tokens and not ends.intersection(found[-1:]):
        ids = torch.tensor([fresh], device=passes.model.device)
        changes = UNCHANGED if steering is None else steering.changes(first, len(fresh))
        logits = passes.next_logits(ids, cache, changes)[0]
        _check_finite(logits, question.strength)
        first += len(fresh)
        fresh = [_choose(logits.cpu(), question.temperature, generator)]
        found += fresh
    return found


def _choose(logits: Float[Tensor, " vocabulary"], temperature: float, generator: torch.Generator) -> int:
    """The most likely token, or one drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.double()
    # The largest becomes 0, so that nothing overflows at small temperatures.
    return int(torch.multinomial(((logits - logits.max()) / temperature).softmax(-1), 1, generator=generator))


def _see(passes: Passes, ids: Sequence[int], start: int, steering: Steering) -> _Seen:
    """Returns what each model predicts for the tokens from `start` on, each before reading it."""
    model = passes.model
    whole = torch.tensor([ids], device=model.device)
    before = slice(start - 1, len(ids) - 1)
    steered = passes.normed(whole, steering.changes(0, len(ids)))[0, before]
    unsteered = passes.normed(whole)[0, before]
    size = max(1, LOGITS_MAX // model.vocabulary_size)
    parts = [
        _compare(passes, *part)
        for part in zip(steered.split(size), unsteered.split(size), whole[0, start:].split(size), strict=True)
    ]
    return _Seen(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compare(passes: Passes, steered: Tensor, unsteered: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the tokens under both models, and sum p ln(p / q), with p the steered prediction and q the
    other.
    """
    with passes.turn():
        p, q = (passes.model.unembed(normed).float().log_softmax(-1) for normed in (steered, unsteered))
    kl = (p.exp() * (p - q)).sum(-1)
    return p.gather(-1, tokens[:, None])[:, 0], q.gather(-1, tokens[:, None])[:, 0], kl


def _table(model: LanguageModel, name: str, start: int, tokens: Sequence[int], seen: _Seen) -> pa.Table:
    columns = {column: getattr(seen, column).double().numpy(force=True) for column in ("steered", "unsteered", "kl")}
    return pa.table(
        {
            "generated": pa.array([name] * len(tokens), pa.string()),
            "position": pa.array(range(start, start + len(tokens)), pa.int32()),
            "token": pa.array(tokens, pa.int32()),
            "text": pa.array(model.texts.in_order(tokens), pa.string()),
            **{column: pa.array(values) for column, values in columns.items()},
        }
    )


def _decoded(model: LanguageModel, tokens: Sequence[int]) -> str:
    """Decodes the text after a prompt, so that its first token keeps its space."""
    return "".join(model.texts.in_order(token for token in tokens if token not in model.special_ids))


def _end_ids(passes: Passes) -> frozenset[int]:
    """The tokens that end a text: those of the model's generation settings, else the tokenizer's."""
    with passes.turn():
        configured = getattr(getattr(passes.model.module, "generation_config", None), "eos_token_id", None)
    found = passes.model.tokenizer.eos_token_id if configured is None else configured
    return frozenset(found) if isinstance(found, list) else frozenset(() if found is None else (found,))


def _check_site(question: SteerText) -> None:
    """A vector needs a site; a feature uses that of its SAE."""
    is_feature = isinstance(question.direction, SaeFeature)
    if is_feature == bool(question.site):
        raise BadRequest(
            f"site {question.site!r} cannot be given together with a feature"
            if is_feature
            else "a direction given as a vector needs a site",
            field="site",
            value=question.site,
            allowed="none: a feature is steered at its SAE's site" if is_feature else "a site of the residual stream",
        )


def _check_numbers(question: SteerText) -> None:
    if not (math.isfinite(question.temperature) and question.temperature >= 0):
        raise BadRequest(
            f"temperature is {question.temperature:g}",
            field="temperature",
            value=question.temperature,
            allowed="0 (always the likeliest token) or more",
        )
    if not 0 <= question.seed <= SEED_MAX:
        raise BadRequest(f"seed is {question.seed}", field="seed", value=question.seed, allowed=f"0 to {SEED_MAX}")
    wanted = question.mode != "project_out"
    if (question.strength is not None) != wanted or not math.isfinite(question.strength or 0.0):
        raise BadRequest(
            f"strength is {'missing' if question.strength is None else question.strength} for mode {question.mode}",
            field="strength",
            value="" if question.strength is None else question.strength,
            allowed="a finite number"
            if wanted
            else "none: project_out removes the whole projection onto the direction",
        )


def _check_tokens(model: LanguageModel, tokens: int, prompt: int, limits: LiveLimits) -> None:
    most = min(limits.steered_tokens, model.context_length - prompt)
    if not 1 <= tokens <= most:
        raise BadRequest(
            f"{tokens} new tokens after a prompt of {prompt} are not possible: {model.name!r} reads "
            f"{model.context_length} in all"
            f"{model.context_reason}, and one answer can have at most {limits.steered_tokens} new tokens",
            reason="LIMIT_EXCEEDED" if tokens else "ARGUMENT_INVALID",
            field="max_new_tokens",
            value=tokens,
            allowed=f"1 to {most}" if most else "a shorter prompt",
        )


def _check_finite(logits: Float[Tensor, " vocabulary"], strength: float | None) -> None:
    if not bool(logits.isfinite().all()):
        raise BadRequest(
            f"with strength {strength} the model's logits are not finite",
            reason="VALUE_OVERFLOW",
            field="strength",
            value=strength,
            allowed="a smaller strength, with which the logits stay finite",
        )


def _steer_text(given: Resources, question: SteerText) -> SteerTextAnswer:
    along = question.direction
    sae = given.fitting(along.sae) if isinstance(along, SaeFeature) else None
    return steer_text(given.passes, sae, question, given.limits)


ANSWERS: Answers = {SteerText: _steer_text}
