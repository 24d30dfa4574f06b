"""What a lab can be asked of replaced activations, and of the tokens that two prompts do not share; all of it live."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Unpack

import pyarrow as pa

from actstore import _checks
from actstore._checks import Text
from actstore._errors import Fault, refused
from actstore._patching.replaced_tokens import TokenComparison, token_table
from actstore._patching.request import PatchOptions, sweep
from actstore._patching.sweep import Sweep, SweptCells, sweep_of
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
)


class PatchingCalls:
    """What a lab is asked of patching."""

    _backend: Backend

    def patch(
        self,
        model: str,
        *,
        clean: Text | Sequence[Text],
        corrupt: Text | Sequence[Text],
        answers: Sequence[str | int] | Sequence[Sequence[str | int]],
        on_cells: Callable[[SweptCells], object] | None = None,
        progress: bool = True,
        **options: Unpack[PatchOptions],
    ) -> Sweep:
        """Replace one activation at a time and see how far the answer moves, in both directions unless told otherwise.

        `clean` and `corrupt` have as many tokens, or `spans` names those that play the same part: {"who": ("Mary",
        "Jo"), "end": (range(9, 12), range(8, 11))}, as text or as numbers of tokens. `answers` are the one-token
        answers to each, most with a leading space: (" Mary", " Jo"). Several pairs are lists, as may be answers. Token
        ids stand for any of these: prompts of ids are read as they are, unless `bos` is True.

        `sites` are of resid_pre, attn_out, resid_mid, mlp_out, resid_post, embedding and, by head, q, k, v, pattern and
        z (None: resid_pre, attn_out, mlp_out, z; or none, with `joint` or `sae`); `layers` and `heads` numbers (None:
        all). `positions`: "each", "all" (of a site at once), "last", or numbers. `window_layers` replaces so many
        layers at once, `joint` sets of cells: {"movers": [("z.3.0", 12), ("z.3.6", 12)]}.

        `source`: the other "prompt", "zero", or of `source_run` the "mean" of its rows, or rows drawn by "resample".
        `sae` patches `features` of that SAE (None: all that are active) one by one, all together, and what the SAE
        leaves unexplained, which meanwhile is `sae_error`: "kept", "dropped" or "patched".

        `receivers` make it path patching: sites send, and q.9.6, k.9, v.9, mlp_in.3 or "logits" alone take what comes
        past held heads, and past MLPs that are "recomputed" or, with `path_mlps`, "frozen".

        `screen` estimates every cell by a gradient, and computes only so many of each direction. `qk_correction`
        computes softmax for q and k; `grad_drop` finds effects that cancel, and loses signs.
        docs/explanation/patching.md says all.

        `on_cells` is called with rows as they are finished. The answer to a request is kept and given again to the
        same one, unless `fresh`; Ctrl-C ends the sweep. `estimate_patch` says beforehand what it would take.
        """
        bar = Bar(sys.stderr, f"patch {model}", enabled=progress)
        return self._swept(sweep(model, clean, corrupt, answers, **options), bar, on_cells or (lambda _: None))

    def estimate_patch(
        self,
        model: str,
        *,
        clean: Text | Sequence[Text],
        corrupt: Text | Sequence[Text],
        answers: Sequence[str | int] | Sequence[Sequence[str | int]],
        **options: Unpack[PatchOptions],
    ) -> SweepEstimate:
        """What `patch` with the same arguments would take: cells, token-layers, bytes, seconds. No cell is run."""
        question = EstimateSweep(sweep(model, clean, corrupt, answers, **options))
        found: EstimateSweepAnswer = self._backend.ask(question)
        return found.estimate

    def _swept(self, question: RunSweep, bar: Bar, on_cells: Callable[[SweptCells], object]) -> Sweep:
        """Rows come part by part, and at the end what is said of all of them."""
        parts: list[pa.Table] = []
        try:
            for answer in self._backend.listen(question):
                update = answer.update
                if isinstance(update, SweepProgress):
                    bar.draw(update.cells_done, update.cells_total, "sweep", "cells")
                elif isinstance(update, SweepCells):
                    parts.append(update.rows)
                    on_cells(SweptCells(table=update.rows))
                else:
                    return sweep_of(update, question, parts)
        finally:
            bar.close()
        raise Fault("the service ended the sweep without a result")

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
        names = tuple(_checks.words(name, "corrupt") for name in corrupt)
        question = CompareTokens(
            **_checks.of_model(model, revision, bos),
            clean=_checks.prompt(clean, "clean"),
            corrupt=_checks.alike_prompts(corrupt.values(), "corrupt"),
            layers=_checks.whole_numbers(layers, "layers"),
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
