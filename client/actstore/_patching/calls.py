"""A lab's live questions about patching, and about the tokens in which two prompts differ."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Unpack

import pyarrow as pa

from actstore import _checks
from actstore._checks import Text
from actstore._errors import Fault, Unavailable, refused
from actstore._patching.replaced_tokens import TokenComparison, token_table
from actstore._patching.request import Answers, PatchOptions, sweep
from actstore._patching.sweep import Sweep, SweptCells, sweep_of
from actstore._signatures import spelled_out
from actstore._transport.base import Backend
from actstore._view.bar import Bar
from actstore_api.records.model import CompareTokens, CompareTokensAnswer
from actstore_api.records.patching import (
    EstimateSweep,
    EstimateSweepAnswer,
    RunSweep,
    SweepCells,
    SweepEstimate,
    SweepProgress,
    SweepResult,
)


class PatchingCalls:
    """The calls of a lab about replaced activations."""

    _backend: Backend

    @spelled_out(sweep)
    def patch(
        self,
        model: str,
        *,
        clean: Text | Sequence[Text],
        corrupt: Text | Sequence[Text],
        answers: Answers,
        on_cells: Callable[[SweptCells], object] | None = None,
        progress: bool = True,
        **options: Unpack[PatchOptions],
    ) -> Sweep:
        """Replace one activation at a time and measure how far the answer moves, in both directions by default.

        A cell is an activation, or several that are replaced together. Its row says what becomes of the model's answer
        when that is replaced. The page on patching in the docs has examples, formulas and numbers.

        Args:
            model: A model's name, of `lab.models()`.
            clean: The clean prompt, or several: text, or token ids, which are read as they are.
            corrupt: A prompt for each clean one, with as many tokens unless there are `spans`.
            answers: The one-token answers to the clean and to the corrupt prompt, as texts, most with a leading space,
                or as token ids: (" Mary", " John"). One pair for all prompts, or a list with a pair for each.
            sites: Kinds of sites: resid_pre, attn_out, resid_mid, mlp_out, resid_post, embedding, and by head q, k, v,
                pattern, z. None: resid_pre, attn_out, mlp_out, z; or none of them, if `joint` or `sae` is given.
            layers: Numbers of layers, from 0. None: all.
            heads: Numbers of heads, for sites that have heads. None: all.
            positions: "each": one cell for each token. "all": one cell, all tokens at once. "last": the last token. Or
                numbers of tokens, from 0 with BOS counted: a cell each.
            window_layers: How many layers side by side are replaced as one cell.
            spans: In place of positions, by name: tokens that play the same part in prompts of any lengths, as
                text or token numbers: {"who": ("Mary", "Jo Ann"), "end": (range(9, 12), range(8, 11))}.
            joint: Cells that are replaced together, by name: {"movers": [("z.3.0", 12), ("z.3.6", 12)]}, each
                (site.layer or site.layer.head, position). They come beside the cells of `sites`.
            directions: "denoise" (clean activation into the corrupt run), "noise" (the reverse). None: both.
            source: What replaces the activation. "prompt": the other prompt's activation. "zero": zeros. "mean": the
                mean of rows of the run `stored`. "resample": such rows, drawn at random, one for each position.
            stored: Only for "mean" and "resample": the run, its name, or a `StoredRows` with more choices.
            sae: An SAE's name, or a `PatchedSae` with more choices. Its features are patched one by one and together,
                and so is the part of the activation that it does not explain.
            receivers: Path patching: where paths end, as "q.9.6", "k.9", "mlp_in.3" or "logits", or a
                `Receivers` with more choices. None: the cells themselves are patched.
            screen: A number: estimate all cells by a gradient, and compute this many in each direction. Or a `Screen`
                with more choices. None: compute all.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.
            fresh: Compute it, even if the answer to the same request was kept.
            on_cells: Called with rows as they are finished.
            progress: Draw a bar on stderr.

        An empty collection asks about nothing, and is refused; None is the default.

        Returns:
            One row for each cell. Ctrl-C ends the sweep.
        """
        if on_cells is not None and not callable(on_cells):
            raise refused("on_cells must be a function", "on_cells", repr(on_cells), "a function of one argument")
        question = sweep(model, clean, corrupt, answers, **options)
        bar = Bar(sys.stderr, f"patch {model}", enabled=_checks.switch(progress, "progress"))
        return self._swept(question, bar, on_cells or (lambda _: None))

    @spelled_out(sweep)
    def estimate_patch(
        self,
        model: str,
        *,
        clean: Text | Sequence[Text],
        corrupt: Text | Sequence[Text],
        answers: Answers,
        **options: Unpack[PatchOptions],
    ) -> SweepEstimate:
        """What `patch` with the same arguments would take.

        It runs no cell, and raises the errors that `patch` would raise.

        Args:
            model: A model's name.
            clean: The clean prompt, or several.
            corrupt: A corrupt prompt for each clean one.
            answers: The answers to both, or a pair for each.
            sites: Kinds of sites.
            layers: Numbers of layers. None: all.
            heads: Numbers of heads. None: all.
            positions: "each", "all", "last", or numbers of tokens.
            window_layers: How many layers side by side are replaced as one cell.
            spans: Tokens that play the same part in both prompts, by name, in place of positions.
            joint: Cells that are replaced together, by name.
            directions: "denoise" or "noise". None: both.
            source: What replaces the activation: "prompt", "zero", "mean" or "resample".
            stored: For "mean" and "resample": the run with the rows.
            sae: The SAE whose features are patched.
            receivers: Path patching: where paths end.
            screen: How many cells of each direction are computed. None: all.
            revision: The model's revision.
            prepend_bos: Whether a BOS is put first.
            fresh: Whether a kept answer is ignored.

        Returns:
            Cells, token-layers, bytes of the answer, and seconds of computing.
        """
        question = EstimateSweep(sweep(model, clean, corrupt, answers, **options))
        found: EstimateSweepAnswer = self._backend.ask(question)
        return found.estimate

    def _swept(self, question: RunSweep, bar: Bar, on_cells: Callable[[SweptCells], object]) -> Sweep:
        """The service sends rows part by part, and at the end the fields that concern all rows."""
        parts: list[pa.Table] = []
        end: SweepResult | None = None
        try:
            for answer in self._backend.listen(question):
                update = answer.update
                if isinstance(update, SweepProgress):
                    doing = f"waits for {update.waits_for}" if update.waits_for else "sweep"
                    bar.draw(update.cells_done, update.cells_total, doing, "cells")
                elif isinstance(update, SweepCells):
                    parts.append(update.rows)
                    on_cells(SweptCells(table=update.rows))
                else:
                    end = update  # The stream is read on: who drops it after its last message cancels the call.
        except Unavailable:
            if end is None:
                raise
        finally:
            bar.close()
        if end is None:
            raise Fault("the service ended the sweep without a result")
        return sweep_of(end, question, parts)

    def compare_tokens(
        self,
        model: str,
        *,
        clean: Text,
        corrupt: Mapping[str, Text],
        layers: Iterable[int] | None = None,
        draws: int | None = CompareTokens.draws,
        seed: int = CompareTokens.seed,
        revision: str = "",
        prepend_bos: bool | None = None,
    ) -> TokenComparison:
        """Which tokens that corrupt prompts replace, or put there, the model treats unlike other tokens.

        Each such token's embedding is compared with those of the ordinary vocabulary. What heads of early layers do
        with the token is compared with what they do with random ordinary tokens in its place, wherever it is in the
        prompt.

        Args:
            model: A model's name, of `lab.models()`.
            clean: The clean prompt: text, or token ids.
            corrupt: Candidates by name, each of as many tokens as the clean prompt.
            layers: Numbers of the layers whose heads are looked at, at least one. None: the first third.
            draws: How many ordinary tokens are drawn. None: 128, or as many as there are.
            seed: Which tokens are drawn: the same seed draws the same. 0 to 2^32 - 1.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put first. None: before text if the tokenizer has one, never before ids.

        Returns:
            One row for each corruption, position and prompt, and a verdict in words for each corruption.
        """
        if not isinstance(corrupt, Mapping) or not corrupt:
            allowed = "a dict of texts by name"
            raise refused("no corrupt prompts by their names", "corrupt", repr(type(corrupt).__name__), allowed)
        names = tuple(_checks.words(name, "corrupt") for name in corrupt)
        question = CompareTokens(
            **_checks.of_model(model, revision, prepend_bos),
            clean=_checks.prompt(clean, "clean"),
            corrupt=_checks.alike_prompts(corrupt.values(), "corrupt"),
            layers=_checks.some_numbers(layers, "layers"),
            draws=_checks.optional_count(draws, "draws"),
            seed=_checks.seed(seed),
        )
        found: CompareTokensAnswer = self._backend.ask(question)
        tokens, heads = (_by_name(table, names) for table in (found.tokens, found.heads))
        return TokenComparison(table=token_table(tokens, heads), names=names, heads=heads, provenance=found.provenance)


def _by_name(table: pa.Table, names: tuple[str, ...]) -> pa.Table:
    """The number of a corrupt prompt is its name's."""
    named = pa.array([names[number] for number in table["corrupt"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("corrupt"), "corruption", named)
