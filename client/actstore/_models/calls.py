"""What a lab can be asked of a model and a text given now; all of it live."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from actstore import _checks as _arguments
from actstore._errors import refused
from actstore._features.asking import seed_of
from actstore._model_questions import (
    LENS_SITES,
    MODES,
    SITE_ABLATIONS,
    STEERED,
    UNITS,
    AblateSitesQuestion,
    AttentionQuestion,
    CompareTokensQuestion,
    InductionQuestion,
    SteerQuestion,
    TextLensQuestion,
    TokeniseQuestion,
)
from actstore._models.answers import Attention, InductionScores, SiteAblation, SteeredText, TextLens, TextTokens
from actstore._patching.replaced_tokens import TokenComparison, token_table
from actstore._transport.base import Backend

# A text, or token ids in its place: a list, an array.
Text = str | Sequence[int]


class ModelAsking:
    """A text is a string, which gets a BOS where the tokenizer has one and the text has none of its own (`bos` True and
    False say so or not), or token ids, which are read as they are, unless `bos` is True.
    """

    _backend: Backend

    def tokens(self, model: str, text: Text, *, revision: str = "", bos: bool | None = None) -> TextTokens:
        r"""What the model reads of a text: a row a token, with its id, its text and whether it is special.

        Of token ids, what they stand for. A token's text has its leading space; bytes that are no character show as
        `\xe2\x80`, and a character whose bytes several tokens have is the last one's.
        """
        question = TokeniseQuestion(**_of_model(model, revision, bos), text=_arguments.prompt(text, "text"))
        found = self._backend.ask(question)
        return TextTokens(table=found.table, provenance=found.provenance)

    def attention(
        self,
        model: str,
        text: Text,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        patterns: bool = False,
        revision: str = "",
        bos: bool | None = None,
    ) -> Attention:
        """Where each head attends: what it comes to, head by head, and with `patterns` every weight.

        With a[q, k] the weight of query q on key k, of n tokens: entropy is the mean over q of -sum a ln a, in nats;
        distance the mean over q of sum a |q - k|; the others are shares of all the head's attention, sums of a over n:
        previous_token (k = q - 1), first_token (k = 0), current_token (k = q), duplicate_token (k < q, the same token)
        and induction (k is the token after such a duplicate), as of TransformerLens's head detector.
        """
        question = AttentionQuestion(
            **_of_model(model, revision, bos),
            text=_arguments.prompt(text, "text"),
            layers=_numbers(layers, "layers"),
            heads=_numbers(heads, "heads"),
            patterns=_arguments.switch(patterns, "patterns"),
        )
        found = self._backend.ask(question)
        return Attention(
            table=found.table,
            tokens=found.tokens,
            patterns=found.tables.get("patterns", pa.table({})),
            provenance=found.provenance,
        )

    def induction_scores(
        self,
        model: str,
        *,
        tokens: int | None = None,
        texts: int = 4,
        seed: int = 0,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        revision: str = "",
        bos: bool | None = None,
    ) -> InductionScores:
        """Which heads do induction: on so many random tokens (None: 48, or as many as fit) that come twice.

        Scores are means over the second time's queries, of their weight on the token after the first occurrence of
        their own (induction), on that occurrence (duplicate_token) and on the token before (previous_token).
        """
        question = InductionQuestion(
            **_of_model(model, revision, bos),
            tokens=_arguments.optional_count(tokens, "tokens"),
            texts=_arguments.count(texts, "texts"),
            seed=seed_of(seed),
            layers=_numbers(layers, "layers"),
            heads=_numbers(heads, "heads"),
        )
        found = self._backend.ask(question)
        return InductionScores(
            table=found.table,
            repeated=int(found.facts["tokens"]),
            loss_first=found.facts["loss_first"],
            loss_second=found.facts["loss_second"],
            provenance=found.provenance,
        )

    def logit_lens(
        self,
        model: str,
        text: Text,
        *,
        k: int = 5,
        layers: Iterable[int] | None = None,
        site: str = "resid_post",
        target: str | int = "",
        revision: str = "",
        bos: bool | None = None,
    ) -> TextLens:
        """What each layer would predict at each position, through the model's own final norm and unembedding.

        The k likeliest tokens, the rank and log-probability of the true next token or of `target` (text of one token,
        or its id), entropy, and the divergence of the model's output from the layer's prediction. `site` is resid_pre,
        resid_mid or resid_post, of which the last layer's is the model's output.
        """
        question = TextLensQuestion(
            **_of_model(model, revision, bos),
            text=_arguments.prompt(text, "text"),
            site=_arguments.chosen(site, "site", LENS_SITES),
            layers=_numbers(layers, "layers"),
            k=_arguments.count(k, "k"),
            target=_arguments.answer(target, "target"),
        )
        found = self._backend.ask(question)
        return TextLens(
            table=found.table,
            site=question.site,
            tops=found.tables["tops"],
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
        strength: float | None = None,
        unit: str = "mean_norm",
        mode: str = "add",
        positions: str = "all",
        tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
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
        question = SteerQuestion(
            **_of_model(model, revision, bos),
            prompt=_arguments.prompt(prompt, "prompt"),
            **_along(direction, site, sae, feature),
            mode=_arguments.chosen(mode, "mode", MODES),
            strength=None if strength is None else _arguments.number(strength, "strength"),
            unit=_arguments.chosen(unit, "unit", UNITS),
            positions=_arguments.chosen(positions, "positions", STEERED),
            tokens=_arguments.count(tokens, "tokens"),
            temperature=_arguments.number(temperature, "temperature", least=0.0),
            seed=seed_of(seed),
        )
        found = self._backend.ask(question)
        facts = {
            name: found.facts[name] for name in ("steered_text", "unsteered_text", "site", "mean_norm", "strength")
        }
        return SteeredText(
            table=found.table, mode=question.mode, prompt=found.tokens, provenance=found.provenance, **facts
        )

    def ablate(
        self,
        model: str,
        texts: Iterable[Text] | Text,
        *,
        with_: str = "zero",
        sites: Iterable[str] | str | None = None,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        run: str = "",
        run_tokens: int = 8192,
        seed: int = 0,
        same_position: bool = False,
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
        question = AblateSitesQuestion(
            **_of_model(model, revision, bos),
            texts=_arguments.prompts(texts, "texts"),
            sites=_arguments.names(sites, "sites"),
            layers=_numbers(layers, "layers"),
            heads=_numbers(heads, "heads"),
            ablation=_arguments.chosen(with_, "with_", SITE_ABLATIONS),
            run=_arguments.text(run, "run"),
            run_tokens=_arguments.count(run_tokens, "run_tokens"),
            seed=seed_of(seed),
            same_position=_arguments.switch(same_position, "same_position"),
        )
        found = self._backend.ask(question)
        return SiteAblation(
            table=found.table,
            ablation=question.ablation,
            loss=found.facts["loss"],
            counted=int(found.facts["tokens"]),
            by_text=found.tables["texts"],
            provenance=found.provenance,
            excluded=("bos", "special"),
        )

    def compare_tokens(
        self,
        model: str,
        *,
        clean: Text,
        corrupt: Mapping[str, Text],
        layers: Iterable[int] | None = None,
        draws: int | None = None,
        seed: int = 0,
        revision: str = "",
        bos: bool | None = None,
    ) -> TokenComparison:
        """Which tokens that corrupt prompts replace, or put there, the model treats unlike other tokens.

        `corrupt` has the candidates by name, each of as many tokens as the clean prompt. Each such token's embedding is
        compared with those of the ordinary vocabulary, and what heads of `layers` (None: the first third) do with it
        with what they do with random ordinary tokens in its place, wherever it is in the prompt: so many `draws`
        (None: 128, or as many as there are).
        """
        if not isinstance(corrupt, Mapping) or not corrupt:
            allowed = "a dict of texts by name"
            raise refused("no corrupt prompts by their names", "corrupt", repr(type(corrupt).__name__), allowed)
        names = tuple(_arguments.words(name, "corrupt") for name in corrupt)
        question = CompareTokensQuestion(
            **_of_model(model, revision, bos),
            clean=_arguments.prompt(clean, "clean"),
            corrupt=_arguments.alike_prompts(corrupt.values(), "corrupt"),
            layers=_numbers(layers, "layers"),
            draws=_arguments.optional_count(draws, "draws"),
            seed=seed_of(seed),
        )
        found = self._backend.ask(question)
        tokens, heads = (_by_name(table, names) for table in (found.table, found.tables["heads"]))
        return TokenComparison(table=token_table(tokens, heads), names=names, heads=heads, provenance=found.provenance)


def _by_name(table: pa.Table, names: tuple[str, ...]) -> pa.Table:
    """The number of a corrupt prompt is its name's."""
    named = pa.array([names[number] for number in table["corrupt"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("corrupt"), "corruption", named)


def _of_model(model: str, revision: str, bos: bool | None) -> dict[str, Any]:
    return {
        "model": _arguments.text(model, "model"),
        "revision": _arguments.text(revision, "revision"),
        "bos": _arguments.tristate(bos, "bos"),
    }


def _numbers(values: Iterable[int] | None, field: str) -> tuple[int, ...]:
    return _arguments.whole_numbers(values, field, _arguments.MAXIMUM_COUNT)


def _along(direction: Iterable[float] | None, site: str, sae: str, feature: int | None) -> dict[str, Any]:
    """Either a direction and its site, or an SAE and its feature."""
    of_sae = bool(sae) or feature is not None
    if of_sae == (direction is not None):
        given = "both a direction and an SAE's feature" if of_sae else "neither a direction nor an SAE's feature"
        allowed = "direction= and site=, or sae= and feature="
        raise refused(f"{given} is given", "direction", repr(direction)[:60], allowed)
    if direction is not None:
        return {"vector": _arguments.vector(direction, "direction"), "site": _arguments.words(site, "site")}
    if site:
        raise refused("a feature is steered at its SAE's site", "site", site, "none, with sae= and feature=")
    if feature is None:
        raise refused("no feature of the SAE is named", "feature", "None", "an index")
    return {"sae": _arguments.words(sae, "sae"), "feature": _arguments.count(feature, "feature")}
