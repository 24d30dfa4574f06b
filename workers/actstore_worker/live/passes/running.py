"""Forward passes for one question, some of them with activations changed."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from actstore_storage.errors import ActstoreError
from actstore_storage.format.sites import Site
from actstore_worker.caller import ANYONE, Caller
from actstore_worker.models.attention import using_attention
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import Change, See, changing, observe, visit, writing
from actstore_worker.models.turns import SharedModel

# Logits are computed in slices of this many elements, because those of a whole batch would be many times larger than
# its activations.
LOGITS_MAX = 1 << 24
UNCHANGED: Mapping[Site, Change] = {}


class Passes:
    """A question's forward passes. Each takes a turn at the model, so that others can run in between. They end when the
    caller has gone.

    Errors of each pass: ActstoreError CANCELLED.
    """

    def __init__(self, model: SharedModel, stop: threading.Event, caller: Caller = ANYONE) -> None:
        self.model, self._stop, self._caller = model, stop, caller
        self._began = time.monotonic()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the model: within this context, this thread has the model's module."""
        with self.model.turns:
            self.check()
            yield

    def check(self) -> None:
        """Raise CANCELLED if the caller has gone; for what takes long without a pass."""
        if self._stop.is_set():
            raise ActstoreError("the caller no longer waits for this answer", reason="CANCELLED")

    def expect(self, tokens: int) -> None:
        """Say how many tokens the model will run on at least.

        Errors: BadRequest LIMIT_EXCEEDED if this takes longer than the caller waits, even at the highest speed that was
        measured.
        """
        seconds = tokens * self.model.speed.seconds_per_token
        self._caller.after(time.monotonic() - self._began).check_deadline(seconds, "the answer")

    def observe(
        self,
        ids: Int[Tensor, "batch position"],
        sites: Iterable[Site],
        changes: Mapping[Site, Change] = UNCHANGED,
        attention_mask: Bool[Tensor, "batch position"] | None = None,
    ) -> dict[Site, Float[Tensor, "batch position width"]]:
        with self._changed(changes, ids.shape):
            return observe(self.model, ids, attention_mask, sites)

    def visit(
        self, ids: Int[Tensor, "batch position"], sites: Iterable[Site], see: See, attention: str | None = None
    ) -> None:
        """Run the model, and call `see` with each site's tensor during the pass.

        `attention` None: the model's usual implementation.
        """
        with self._changed(UNCHANGED, ids.shape), using_attention(self.model, attention or self.model.attention):
            visit(self.model, ids, None, sites, see)

    def next_logits(
        self, ids: Int[Tensor, "batch position"], cache: Cache, changes: Mapping[Site, Change] = UNCHANGED
    ) -> Float[Tensor, "batch vocabulary"]:
        """Run the model on tokens that follow those in `cache`, add them to it, and return the logits after
        the last.
        """
        with self._changed(changes, ids.shape):
            answer = self.model.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = answer.logits[:, -1]
        return logits.float()

    def normed(
        self, ids: Int[Tensor, "batch position"], changes: Mapping[Site, Change] = UNCHANGED
    ) -> Float[Tensor, "batch position d_model"]:
        """Run the model up to its final norm, whose output `LanguageModel.unembed` takes."""
        with self._changed(changes, ids.shape):
            trunk = self.model.family.decoder(self.model.module)
            found: Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state
        return found

    def log_probabilities(
        self, ids: Int[Tensor, "batch position"], changes: Mapping[Site, Change] = UNCHANGED
    ) -> Float[Tensor, "batch followed"]:
        """Return the natural log-probability of each token's true next token, one column fewer than `ids`."""
        normed = self.normed(ids, changes)
        size = max(1, LOGITS_MAX // self.model.vocabulary_size)
        rows, following = normed[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        parts = [self._log_probability(*part) for part in zip(rows.split(size), following.split(size), strict=True)]
        return torch.cat(parts).view(len(ids), -1)

    def _log_probability(
        self, normed: Float[Tensor, "row d_model"], tokens: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        with self.turn():
            logits = self.model.unembed(normed).float()
        found: Tensor = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)
        return found

    @contextmanager
    def _changed(self, changes: Mapping[Site, Change], shape: torch.Size) -> Iterator[None]:
        with self.turn(), changing(self.model, changes, shape):
            began = time.monotonic()
            yield
            self.model.turns.ran(shape.numel())
            self.model.speed.observe(shape.numel(), time.monotonic() - began)


def adding(model: LanguageModel, site: Site, delta: Float[Tensor, "batch position width"]) -> Mapping[Site, Change]:
    """Return changes that add `delta` to the activation at `site`.

    resid_mid is not the output of a module, so the change is added to attention's output.
    """

    def edit(found: Float[Tensor, "batch position head width_of_head"]) -> None:
        if site.head is None:
            found += delta.unflatten(-1, found.shape[2:])
        else:
            found[:, :, site.head] += delta

    carrier = Site(site.layer, "attn_out") if site.kind == "resid_mid" else site.whole
    return writing(model, {carrier: edit})


def setting(
    sites: Iterable[Site],
    where: Bool[Tensor, "batch position"],
    values: Mapping[Site, Float[Tensor, " width"]],
) -> Mapping[Site, Change]:
    """Return changes that replace the activations at the sites by `values`, at the positions `where`."""

    def change(value: Tensor) -> Change:
        return lambda found: torch.where(where[..., None], value.to(found.dtype), found)

    return {site: change(values[site]) for site in sites}
