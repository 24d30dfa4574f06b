"""Changing a model's activations while it runs, where its modules hand them on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.models.families import Tap
from actstore_worker.models.model import LanguageModel

# Takes what a site's tap has, [row, position, width], and returns what goes on in its place.
Change = Callable[[Tensor], Tensor]
# Takes a copy of a site's activation as [row, position, head, width of a head], one head where the kind has none, and
# writes into it.
Edit = Callable[[Tensor], None]


@contextmanager
def changing(model: LanguageModel, changes: Mapping[Site, Change], shape: Sequence[int]) -> Iterator[None]:
    """While it lasts, the model computes with those sites changed; of token ids of that shape [row, position]."""
    handles: list[RemovableHandle] = []
    try:
        for site, change in changes.items():
            handles.append(_attach(model, site, _on_rows(change, tuple(shape))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def writing(model: LanguageModel, edits: Mapping[Site, Edit]) -> dict[Site, Change]:
    """The changes that edits make. `pattern` can only be seen: attention has used its weights by then."""

    def change(site: Site, edit: Edit) -> Change:
        def changed(found: Tensor) -> Tensor:
            copy = found.clone()
            edit(by_head(model, site.kind, copy))
            return copy

        return changed

    return {site: change(site, edit) for site, edit in edits.items()}


def by_head(model: LanguageModel, kind: str, found: Tensor) -> Tensor:
    """A view [row, position, head, width] of what a tap has; of pattern, [row, query, head, key]."""
    tap = model.family.taps[kind]
    if kind == "pattern":
        return found.transpose(1, 2)
    if tap.select is not None:
        return tap.select(found, model.config)
    split: Tensor = found.unflatten(-1, (model.head_counts[kind] if kind in HEAD_KINDS else 1, -1))
    return split


def _attach(model: LanguageModel, site: Site, change: Change) -> RemovableHandle:
    tap = model.family.taps[site.kind]
    module = model.layers[site.layer].get_submodule(tap.path)
    if tap.is_input:
        return module.register_forward_pre_hook(lambda _module, inputs: (change(inputs[0]), *inputs[1:]))
    return module.register_forward_hook(_on_output(tap, change))


def _on_rows(change: Change, shape: tuple[int, ...]) -> Change:
    """OPT's MLP sees the rows of all sequences as one list."""
    return lambda found: change(found.unflatten(0, shape)).flatten(0, 1) if found.ndim == 2 else change(found)


def _on_output(tap: Tap, change: Change) -> Callable[[Any, Any, Any], Any]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return change(output)
        return tuple(change(part) if place == tap.item else part for place, part in enumerate(output))

    return hook
