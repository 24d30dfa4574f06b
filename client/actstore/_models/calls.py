"""A lab's questions about a model and a text, which the model answers live."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import pyarrow as pa

from actstore import _checks
from actstore._checks import Text
from actstore._errors import refused
from actstore._models.answers import Attention, InductionScores, TextLens, TextTokens
from actstore._models.interventions import SiteAblation, SteeredText
from actstore._transport.base import Backend
from actstore._where import NamedRun, StoredText, stored_text
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
from actstore_api.records.model import SiteAblation as AblationKind
from actstore_api.records.terms import ModelReference, SaeFeature

# Residual streams that can be unembedded.
LensSite = Literal["resid_pre", "resid_mid", "resid_post"]


class ModelCalls:
    """The calls of a lab about a model and a text given now.

    A text is a string or token ids. A string gets a BOS if the tokenizer has one and the string has none of its own;
    token ids are read as they are. `prepend_bos` True and False say otherwise.

    None stands for all layers, heads or sites that there are. An empty collection asks about nothing, and is refused.
    """

    _backend: Backend

    def tokens(self, model: str, text: Text, *, revision: str = "", prepend_bos: bool | None = None) -> TextTokens:
        r"""What the model reads of a text: one row for each token, with its id, its text and whether it is special.

        A token's text has its leading space. Bytes that are no character show as `\xe2\x80`; a character whose bytes
        several tokens have is shown at the last one.

        Args:
            model: A model's name, of `lab.models()`.
            text: Text; or token ids, to see what they stand for.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.

        Returns:
            The tokens. Their `ids` stand for the text in every other call.
        """
        question = TokenizeText(**_checks.of_model(model, revision, prepend_bos), text=_checks.prompt(text, "text"))
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
        prepend_bos: bool | None = None,
    ) -> Attention:
        """Where each head attends in a text, as a few numbers a head; with `patterns`, every weight.

        Let a[q, k] be the weight of query q on key k, of n tokens. entropy is the mean over q of -sum a ln a, in nats.
        distance is the mean over q of sum a |q - k|, in tokens. The other measures are shares of all the head's
        attention, sums of a over n, as in TransformerLens's head detector: previous_token (k = q - 1), first_token
        (k = 0), current_token (k = q), duplicate_token (k < q is the same token) and induction (k follows such a
        duplicate).

        Args:
            model: A model's name, of `lab.models()`.
            text: Text, or token ids.
            layers: Numbers of layers, at least one. None: all.
            heads: Numbers of heads, at least one. None: all.
            patterns: Whether every weight is sent, too.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.

        Returns:
            One row for each head.
        """
        question = GetAttention(
            **_checks.of_model(model, revision, prepend_bos),
            text=_checks.prompt(text, "text"),
            layers=_checks.some_numbers(layers, "layers"),
            heads=_checks.some_numbers(heads, "heads"),
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
        n_tokens: int | None = GetInductionScores.tokens,
        n_texts: int = GetInductionScores.texts,
        seed: int = GetInductionScores.seed,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        revision: str = "",
        prepend_bos: bool | None = None,
    ) -> InductionScores:
        """Which heads do induction: what they attend to on random tokens that come twice.

        A score is a mean over the queries of the second time: of their weight on the token after the first occurrence
        of their own (induction), on that occurrence (duplicate_token) and on the token before (previous_token).

        Args:
            model: A model's name, of `lab.models()`.
            n_tokens: How many different tokens come twice. None: 48, or as many as fit.
            n_texts: Number of random texts that the scores are means over.
            seed: Which tokens are drawn: the same seed draws the same. 0 to 2^32 - 1.
            layers: Numbers of layers, at least one. None: all.
            heads: Numbers of heads, at least one. None: all.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.

        Returns:
            One row for each head, and the model's loss the first and the second time.
        """
        question = GetInductionScores(
            **_checks.of_model(model, revision, prepend_bos),
            tokens=_checks.optional_count(n_tokens, "n_tokens"),
            texts=_checks.count(n_texts, "n_texts"),
            seed=_checks.seed(seed),
            layers=_checks.some_numbers(layers, "layers"),
            heads=_checks.some_numbers(heads, "heads"),
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
        site: LensSite = "resid_post",
        target: str | int | None = None,
        revision: str = "",
        prepend_bos: bool | None = None,
    ) -> TextLens:
        """What each layer would predict at each position, through the model's own final norm and unembedding.

        Each row has the rank and log-probability of the true next token, the prediction's entropy, and the divergence
        of the model's output from it, in nats.

        Args:
            model: A model's name, of `lab.models()`.
            text: Text, or token ids.
            k: How many of the likeliest tokens are told of each prediction.
            layers: Numbers of layers, at least one. None: all.
            site: Which residual stream is read: "resid_pre", "resid_mid" or "resid_post". The last layer's resid_post
                gives the model's output.
            target: A token that is looked for at every position: text of one token, or its id. None: each position's
                true next token.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.

        Returns:
            One row for each layer and position. `tops` has the likeliest tokens.
        """
        question = GetTextLens(
            **_checks.of_model(model, revision, prepend_bos),
            text=_checks.prompt(text, "text"),
            site=_checks.one_of(site, "site", get_args(LensSite)),
            layers=_checks.some_numbers(layers, "layers"),
            k=_checks.count(k, "k"),
            target=None if target is None else _checks.answer(target, "target"),
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
        site: str | None = None,
        sae: str | None = None,
        feature: int | None = None,
        strength: float | None = SteerText.strength,
        unit: StrengthUnit = SteerText.unit,
        mode: SteeringMode = SteerText.mode,
        positions: SteeredPositions = SteerText.positions,
        max_new_tokens: int = SteerText.max_new_tokens,
        temperature: float = SteerText.temperature,
        seed: int = SteerText.seed,
        revision: str = "",
        prepend_bos: bool | None = None,
    ) -> SteeredText:
        """Text that the model writes while it is steered, beside the text that it writes by itself.

        It is steered along a `direction` at a `site`, or along the decoder direction of a `feature` of an `sae`, at
        that SAE's site. How long the vector is does not matter: `strength` says how far.

        Args:
            model: A model's name, of `lab.models()`.
            prompt: The text that goes on, or its token ids. Its BOS and other special tokens are never steered.
            direction: A vector of d_model numbers, not all 0.
            site: Where `direction` acts: a place in the residual stream, such as "resid_post.3".
            sae: An SAE's name, in place of a direction.
            feature: Index of a feature of the SAE.
            strength: How far, in `unit`. Required, except for the mode "project_out", which has none.
            unit: "mean_norm": the mean L2 norm at the site over the prompt's tokens. "absolute": the unit of the site's
                own vectors.
            mode: "add": `strength` is added along the direction. "set": the projection onto the direction, or what
                the feature writes, becomes `strength`. "project_out": the projection onto the direction is taken away.
            positions: Which tokens are steered: "prompt", "generated" or "all".
            max_new_tokens: How many tokens are written at most.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            seed: Which tokens are drawn: the same seed draws the same text. 0 to 2^32 - 1.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.

        Returns:
            One row for each token of each of the two texts.
        """
        question = SteerText(
            **_checks.of_model(model, revision, prepend_bos),
            prompt=_checks.prompt(prompt, "prompt"),
            **_along(direction, site, sae, feature),
            mode=_checks.one_of(mode, "mode", get_args(SteeringMode)),
            strength=None if strength is None else _checks.number(strength, "strength"),
            unit=_checks.one_of(unit, "unit", get_args(StrengthUnit)),
            positions=_checks.one_of(positions, "positions", get_args(SteeredPositions)),
            max_new_tokens=_checks.count(max_new_tokens, "max_new_tokens"),
            temperature=_checks.number(temperature, "temperature", least=0.0),
            seed=_checks.seed(seed),
        )
        found: SteerTextAnswer = self._backend.ask(question)
        return _steered_text(found, question.mode)

    def ablate(
        self,
        model: str,
        texts: Iterable[Text] | Text,
        *,
        ablation: AblationKind = AblateSites.ablation,
        sites: Iterable[str] | str | None = None,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        stored: StoredText | NamedRun | str | None = None,
        seed: int = AblateSites.seed,
        same_position: bool = AblateSites.same_position,
        revision: str = "",
        prepend_bos: bool | None = None,
    ) -> SiteAblation:
        """What the loss on these texts becomes without each part of the model, one part at a time.

        BOS and special tokens count nowhere: they are not ablated, no mean is over them, and the loss is over the
        tokens that follow the others.

        Args:
            model: A model's name, of `lab.models()`.
            texts: One text or several, as text or as token ids.
            ablation: What takes a part's place. "zero": zeros. "mean": the mean over the texts' tokens, or over those
                of `stored`. "resample": the same part's activation in another text.
            sites: Kinds, for each layer and head of them, or single parts: "mlp_out.2", "z.3" (all its heads at once),
                "z.3.5". None: attn_out, mlp_out, z.
            layers: Numbers of layers for the kinds in `sites`, at least one. None: all.
            heads: Numbers of heads for kinds that have heads, at least one. None: all.
            stored: For "mean": the run with the text to average over, its name, or a `StoredText` with more choices.
            seed: For "resample": decides which text gives to which, and at which position. 0 to 2^32 - 1.
            same_position: For "resample", with texts of equal length: each position gets the activation of the same
                position in the other text. False: that of a random position that is not special.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.

        Returns:
            One row for each part, with the loss of the model without that part.
        """
        question = AblateSites(
            **_checks.of_model(model, revision, prepend_bos),
            texts=_checks.prompts(texts, "texts"),
            sites=_checks.some_names(sites, "sites"),
            layers=_checks.some_numbers(layers, "layers"),
            heads=_checks.some_numbers(heads, "heads"),
            ablation=_checks.one_of(ablation, "ablation", get_args(AblationKind)),
            stored=stored_text(stored),
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


def _steered_text(found: SteerTextAnswer, mode: SteeringMode) -> SteeredText:
    return SteeredText(
        table=found.tokens,
        mode=mode,
        prompt=found.prompt,
        steered_text=found.steered_text,
        unsteered_text=found.unsteered_text,
        site=found.site,
        mean_norm=found.mean_norm,
        strength=found.strength,
        provenance=found.provenance,
    )


def _along(direction: object, site: str | None, sae: str | None, feature: int | None) -> dict[str, Any]:
    """Either a direction and its site, or an SAE and its feature."""
    of_sae = sae is not None or feature is not None
    if of_sae == (direction is not None):
        given = "both a direction and an SAE's feature" if of_sae else "neither a direction nor an SAE's feature"
        allowed = "direction= and site=, or sae= and feature="
        raise refused(f"{given} is given", "direction", repr(direction)[:60], allowed)
    if direction is not None:
        return {"direction": _checks.vector(direction, "direction"), "site": _checks.words(site, "site")}
    if site is not None:
        raise refused("a feature is steered at its SAE's site", "site", site, "none, with sae= and feature=")
    if feature is None:
        raise refused("no feature of the SAE is named", "feature", "None", "an index")
    return {"direction": SaeFeature(_checks.words(sae, "sae"), _checks.count(feature, "feature"))}
