"""What a lab can be asked of a model and a text given now; all of it live."""

from collections.abc import Iterable
from typing import Any, get_args

import pyarrow as pa

from actstore import _checks
from actstore._checks import Text
from actstore._errors import refused
from actstore._models.answers import Attention, InductionScores, SiteAblation, SteeredText, TextLens, TextTokens
from actstore._transport.base import Backend
from actstore_api.records.model import (
    AblateSites,
    AblateSitesAnswer,
    GetAttention,
    GetAttentionAnswer,
    GetInductionScores,
    GetInductionScoresAnswer,
    GetTextLens,
    GetTextLensAnswer,
    SteeredPositions,
    SteeringMode,
    SteerText,
    SteerTextAnswer,
    StrengthUnit,
    TokenizeText,
    TokenizeTextAnswer,
)
from actstore_api.records.model import SiteAblation as Ablation
from actstore_api.records.terms import ModelReference, SaeFeature, StoredSample

# Of the logit lens.
LENS_SITES = ("resid_pre", "resid_mid", "resid_post")


class ModelCalls:
    """A text is a string, which gets a BOS where the tokenizer has one and the text has none of its own (`bos` True and
    False say so or not), or token ids, which are read as they are, unless `bos` is True.
    """

    _backend: Backend

    def tokens(self, model: str, text: Text, *, revision: str = "", bos: bool | None = None) -> TextTokens:
        r"""What the model reads of a text: a row a token, with its id, its text and whether it is special.

        Of token ids, what they stand for. A token's text has its leading space; bytes that are no character show as
        `\xe2\x80`, and a character whose bytes several tokens have is the last one's.
        """
        question = TokenizeText(**_checks.of_model(model, revision, bos), text=_checks.prompt(text, "text"))
        found: TokenizeTextAnswer = self._backend.ask(question)
        return TextTokens(table=found.tokens, provenance=found.provenance)

    def attention(
        self,
        model: str,
        text: Text,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        patterns: bool = GetAttention.patterns,
        revision: str = "",
        bos: bool | None = None,
    ) -> Attention:
        """Where each head attends: what it comes to, head by head, and with `patterns` every weight.

        With a[q, k] the weight of query q on key k, of n tokens: entropy is the mean over q of -sum a ln a, in nats;
        distance the mean over q of sum a |q - k|; the others are shares of all the head's attention, sums of a over n:
        previous_token (k = q - 1), first_token (k = 0), current_token (k = q), duplicate_token (k < q, the same token)
        and induction (k is the token after such a duplicate), as of TransformerLens's head detector.
        """
        question = GetAttention(
            **_checks.of_model(model, revision, bos),
            text=_checks.prompt(text, "text"),
            layers=_checks.whole_numbers(layers, "layers"),
            heads=_checks.whole_numbers(heads, "heads"),
            patterns=_checks.switch(patterns, "patterns"),
        )
        found: GetAttentionAnswer = self._backend.ask(question)
        return Attention(
            table=found.heads,
            tokens=found.tokens,
            patterns=pa.table({}) if found.patterns is None else found.patterns,
            provenance=found.provenance,
        )

    def induction_scores(
        self,
        model: str,
        *,
        tokens: int | None = GetInductionScores.tokens,
        texts: int = GetInductionScores.texts,
        seed: int = GetInductionScores.seed,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        revision: str = "",
        bos: bool | None = None,
    ) -> InductionScores:
        """Which heads do induction: on so many random tokens (None: 48, or as many as fit) that come twice.

        Scores are means over the second time's queries, of their weight on the token after the first occurrence of
        their own (induction), on that occurrence (duplicate_token) and on the token before (previous_token).
        """
        question = GetInductionScores(
            **_checks.of_model(model, revision, bos),
            tokens=_checks.optional_count(tokens, "tokens"),
            texts=_checks.count(texts, "texts"),
            seed=_checks.seed(seed),
            layers=_checks.whole_numbers(layers, "layers"),
            heads=_checks.whole_numbers(heads, "heads"),
        )
        found: GetInductionScoresAnswer = self._backend.ask(question)
        return InductionScores(
            table=found.heads,
            repeated=found.tokens,
            loss_first=found.loss_first,
            loss_second=found.loss_second,
            provenance=found.provenance,
        )

    def logit_lens(
        self,
        model: str,
        text: Text,
        *,
        k: int = GetTextLens.k,
        layers: Iterable[int] | None = None,
        site: str = GetTextLens.site,
        target: str | int = "",
        revision: str = "",
        bos: bool | None = None,
    ) -> TextLens:
        """What each layer would predict at each position, through the model's own final norm and unembedding.

        The k likeliest tokens, the rank and log-probability of the true next token or of `target` (text of one token,
        or its id), entropy, and the divergence of the model's output from the layer's prediction. `site` is resid_pre,
        resid_mid or resid_post, of which the last layer's is the model's output.
        """
        question = GetTextLens(
            **_checks.of_model(model, revision, bos),
            text=_checks.prompt(text, "text"),
            site=_checks.one_of(site, "site", LENS_SITES),
            layers=_checks.whole_numbers(layers, "layers"),
            k=_checks.count(k, "k"),
            target=None if target == "" else _checks.answer(target, "target"),
        )
        found: GetTextLensAnswer = self._backend.ask(question)
        return TextLens(
            table=found.positions,
            site=question.site,
            tops=found.tops,
            tokens=found.tokens,
            provenance=found.provenance,
        )

    def steer(
        self,
        model: str,
        prompt: Text,
        *,
        direction: Iterable[float] | None = None,
        site: str = "",
        sae: str = "",
        feature: int | None = None,
        strength: float | None = SteerText.strength,
        unit: str = SteerText.unit,
        mode: str = SteerText.mode,
        positions: str = SteerText.positions,
        tokens: int = SteerText.max_new_tokens,
        temperature: float = SteerText.temperature,
        seed: int = SteerText.seed,
        revision: str = "",
        bos: bool | None = None,
    ) -> SteeredText:
        """Text that the model writes while it is steered, beside the text that it writes by itself.

        Along a `direction` of d_model numbers at a `site` such as resid_post.3, or along the decoder direction of a
        `feature` of an `sae`, at that SAE's site. Only the direction counts; how far is `strength`, in `unit`
        "mean_norm" (of the site over the prompt's tokens) or "absolute" (of the site's own vectors).

        `mode` "add" adds that much; "set" makes what is there that much: the projection onto the direction, or what the
        feature writes; "project_out" takes the projection away and has no strength. `positions`: "all", "prompt" or
        "generated"; BOS and other special tokens of the prompt are never steered. `temperature` 0 takes the likeliest
        token each time; the same `seed` draws the same text.
        """
        question = SteerText(
            **_checks.of_model(model, revision, bos),
            prompt=_checks.prompt(prompt, "prompt"),
            **_along(direction, site, sae, feature),
            mode=_checks.one_of(mode, "mode", get_args(SteeringMode)),
            strength=None if strength is None else _checks.number(strength, "strength"),
            unit=_checks.one_of(unit, "unit", get_args(StrengthUnit)),
            positions=_checks.one_of(positions, "positions", get_args(SteeredPositions)),
            max_new_tokens=_checks.count(tokens, "tokens"),
            temperature=_checks.number(temperature, "temperature", least=0.0),
            seed=_checks.seed(seed),
        )
        found: SteerTextAnswer = self._backend.ask(question)
        return SteeredText(
            table=found.tokens,
            mode=question.mode,
            prompt=found.prompt,
            steered_text=found.steered_text,
            unsteered_text=found.unsteered_text,
            site=found.site,
            mean_norm=found.mean_norm,
            strength=found.strength,
            provenance=found.provenance,
        )

    def ablate(
        self,
        model: str,
        texts: Iterable[Text] | Text,
        *,
        with_: str = AblateSites.ablation,
        sites: Iterable[str] | str | None = None,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        run: str = "",
        run_tokens: int = StoredSample.tokens,
        seed: int = AblateSites.seed,
        same_position: bool = AblateSites.same_position,
        revision: str = "",
        bos: bool | None = None,
    ) -> SiteAblation:
        """What the loss on these texts becomes without each part of the model, one part at a time.

        `sites` are kinds, for each layer and head of them, or single ones: "mlp_out.2", "z.3" (all heads at once),
        "z.3.5" (None: attn_out, mlp_out, z); `layers` and `heads` choose among those of kinds. In their place come
        zeros, the "mean" over the texts' tokens or over those of a `run` (about `run_tokens` of them), or what is there
        in another of the texts ("resample", by `seed`): at a random position, or at the same one of equally long texts.

        BOS and special tokens count nowhere: they are not ablated, no mean is over them, and the loss is over the
        tokens that follow the others.
        """
        question = AblateSites(
            **_checks.of_model(model, revision, bos),
            texts=_checks.prompts(texts, "texts"),
            sites=_checks.names(sites, "sites"),
            layers=_checks.whole_numbers(layers, "layers"),
            heads=_checks.whole_numbers(heads, "heads"),
            ablation=_checks.one_of(with_, "with_", get_args(Ablation)),
            stored=_checks.stored_sample(run, run_tokens),
            seed=_checks.seed(seed),
            same_position=_checks.switch(same_position, "same_position"),
        )
        found: AblateSitesAnswer = self._backend.ask(question)
        return SiteAblation(
            table=found.effects,
            ablation=question.ablation,
            loss=found.loss,
            counted=found.tokens,
            by_text=found.texts,
            provenance=found.provenance,
            excluded=("bos", "special"),
        )


def id_of(backend: Backend, model: ModelReference, text: str) -> int:
    """The id of the token that a text stands for."""
    question = TokenizeText(model, _checks.words(text, "token"), one_token=True)
    found: TokenizeTextAnswer = backend.ask(question)
    return int(found.tokens["token"][0].as_py())


def _along(direction: Iterable[float] | None, site: str, sae: str, feature: int | None) -> dict[str, Any]:
    """Either a direction and its site, or an SAE and its feature."""
    of_sae = bool(sae) or feature is not None
    if of_sae == (direction is not None):
        given = "both a direction and an SAE's feature" if of_sae else "neither a direction nor an SAE's feature"
        allowed = "direction= and site=, or sae= and feature="
        raise refused(f"{given} is given", "direction", repr(direction)[:60], allowed)
    if direction is not None:
        return {"direction": _checks.vector(direction, "direction"), "site": _checks.words(site, "site")}
    if site:
        raise refused("a feature is steered at its SAE's site", "site", site, "none, with sae= and feature=")
    if feature is None:
        raise refused("no feature of the SAE is named", "feature", "None", "an index")
    return {"direction": SaeFeature(_checks.words(sae, "sae"), _checks.count(feature, "feature"))}
