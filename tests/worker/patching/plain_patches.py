"""Patched runs by plain hooks, for tests: transformers' modules by their own names, one whole forward pass a patch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.stored_rows import StoredRows
from actstore_worker.patching.kernels.full import FullForward
from actstore_worker.patching.kernels.recording import record
from actstore_worker.patching.kernels.resumed import Resumed
from actstore_worker.patching.plan import Entry, SweepPlan
from actstore_worker.patching.replacing import Replacing, given_to

# Takes and returns what a module gives, or is given: [position, width].
Change = Callable[[Tensor], Tensor]
LAYERS = {"gpt_neox": "gpt_neox.layers", "gpt2": "transformer.h", "opt": "model.decoder.layers"}
EMBEDDING = "embedding"
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


class PlainPatches:
    """Places are `embedding`, ("in", layer) for what goes into a layer, and ("out", layer) for what comes out of it."""

    def __init__(self, model: LanguageModel) -> None:
        self.module: nn.Module = model.module
        self.layers = self.module.get_submodule(LAYERS.get(model.config.model_type, "model.layers"))

    @torch.no_grad()
    def logits(self, tokens: tuple[int, ...], changes: Mapping[object, Change] | None = None) -> Tensor:
        """At the last position."""
        with ExitStack() as hooks:
            for place, change in (changes or {}).items():
                hooks.callback(self._hook(place, change).remove)
            found: Tensor = self.module(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        return found

    def seen(self, tokens: tuple[int, ...], place: object) -> Tensor:
        kept: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            kept.append(x.clone())
            return x

        self.logits(tokens, {place: keep})
        return kept[0]

    def _hook(self, place: object, change: Change) -> RemovableHandle:
        def first(output: object) -> object:
            if isinstance(output, tuple):
                return (change(output[0][0])[None], *output[1:])
            assert isinstance(output, Tensor)
            return change(output[0])[None]

        if place == EMBEDDING:
            return self.module.get_input_embeddings().register_forward_hook(lambda *call: first(call[-1]))
        assert isinstance(place, tuple)
        where, layer = place
        if where == "in":
            return self.layers[layer].register_forward_pre_hook(lambda _, inputs: first(inputs))
        return self.layers[layer].register_forward_hook(lambda *call: first(call[-1]))


def putting(rows: Tensor, positions: range | list[int]) -> Change:
    """`rows` at those positions, one each."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[list(positions)] = rows
        return x

    return change


def rows_of(
    model: LanguageModel, plan: SweepPlan, stored: StoredRows | None = None
) -> Iterator[tuple[Entry, tuple[int, ...], tuple[int, ...], Tensor]]:
    """Of the first pair: each row of the grid in each direction, the base and the source prompt, and the logits; which
    both kernels agree on.
    """
    tokens, given = plan.pairs[0], given_to(plan, model, stored)
    clean, corrupt = (record(model, ids, plan.sites) for ids in (tokens.clean, tokens.corrupt))
    for direction, base, source in (("denoise", corrupt, clean), ("noise", clean, corrupt)):
        replacing = Replacing(plan, given, tokens, direction, base, source)
        patches = [replacing.patch(entry) for entry in plan.grid]
        found = Resumed(model).run(patches)
        torch.testing.assert_close(found, FullForward(model).run(patches), **TOLERANCE)
        for entry, logits in zip(plan.grid, found, strict=True):
            yield entry, tuple(base.tokens.tolist()), tuple(source.tokens.tolist()), logits
