"""One run: what it stores, every question about it, and the capture that makes it."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

from actstore import _checks
from actstore._answer import Answer
from actstore._errors import ActstoreError, Cancelled, SaeWarning, refused
from actstore._features.asking import SaeOfRun
from actstore._features.feature import Feature
from actstore._features.features import SaeFeatures
from actstore._norms.answer import TOKEN
from actstore._norms.asking import profile_question
from actstore._norms.profiles import NormProfile, ask_profile
from actstore._norms.tokens import TokenNorms, token_norms
from actstore._runs.activations import Activations
from actstore._runs.progress import shards_in_words, unless_failed, watch
from actstore._runs.specification import dataset_name
from actstore._transport.base import Backend
from actstore._view import markup
from actstore._view import text as _text
from actstore._view.bar import Bar
from actstore._where import Excluded, Where, exclusion
from actstore_api.records import catalog
from actstore_api.records.activation import ROW_COLUMNS, ReadActivations, ReadTokens
from actstore_api.records.capture import (
    CancelCapture,
    CancelCaptureAnswer,
    CaptureProgress,
    CaptureSpecification,
    DatasetFiles,
    StartCapture,
    StartCaptureAnswer,
)
from actstore_api.records.terms import ModelReference, Provenance


class Run:
    """As it was when it was opened; each question reads what is committed when it is asked."""

    def __init__(self, description: catalog.Run, backend: Backend) -> None:
        self._description = description
        self._backend = backend

    @property
    def name(self) -> str:
        return self._description.name

    @property
    def specification(self) -> CaptureSpecification:
        return self._description.specification

    @property
    def provenance(self) -> Provenance:
        return self._description.provenance

    @property
    def model(self) -> ModelReference:
        """Which model it is of, and which revision."""
        return ModelReference(self.provenance.model, self.provenance.model_revision)

    @property
    def complete(self) -> bool:
        """Whether every shard was committed when the run was opened."""
        return self._description.complete

    @property
    def tokens_committed(self) -> int:
        return self._description.tokens_committed

    @property
    def tokens_total(self) -> int:
        return self._description.tokens_total

    @property
    def layer_count(self) -> int:
        return self._description.n_layers

    @property
    def d_model(self) -> int:
        return self._description.d_model

    @property
    def dense_sites(self) -> tuple[str, ...]:
        return self._description.dense_sites

    @property
    def norm_sites(self) -> tuple[str, ...]:
        return self._description.norm_sites

    @property
    def saes(self) -> tuple[catalog.SaeAttachment, ...]:
        return self._description.saes

    @overload
    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        exclude: Excluded = None,
        *,
        by: Literal["token"],
        sequences: range | slice,
        quantity: str = "l2",
    ) -> TokenNorms: ...

    @overload
    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        exclude: Excluded = None,
        quantiles: Sequence[float] | None = None,
        by: str = "layer",
        *,
        quantity: str = "l2",
        histogram: int | Sequence[float] | None = None,
        exact: bool = False,
        sequences: range | slice | None = None,
    ) -> NormProfile: ...

    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        exclude: Excluded = None,
        quantiles: Sequence[float] | None = None,
        by: str = "layer",
        *,
        quantity: str = "l2",
        histogram: int | Sequence[float] | None = None,
        exact: bool = False,
        sequences: range | slice | None = None,
    ) -> NormProfile:
        """Norms over tokens at each site: site kinds (`resid_post`), single sites (`resid_post.3`), or all.

        `exclude` names what does not count: token classes (bos, special, sink) and position_0, each sequence's first
        token; None is the default, BOS, and () leaves nothing out. `quantiles` None gives five of them, and () none:
        then nothing but the run's statistics is read. `by` layer, site (all layers of a kind together), token_class,
        position or document says what rows are of. `by` token takes `sequences`, as range(4), and gives a TokenNorms:
        their tokens one by one, with a column a site.

        `quantity`: l2; rms and standard_deviation over d_model; centred_l2; cosine_to_stream (a sublayer's write to
        what it is added to), cosine_to_next (of resid_pre to the next layer's); share_of_stream and relative_increase
        (a write's norm, and what it adds to the stream's, over the stream's). `histogram`: of each site, in so many
        bins or between these edges. `exact`: quantiles and histograms are of each token's own norm, and not of sketches
        with their `rank_error`; that reads as much as there are tokens.
        """
        asked = profile_question((self.name,), sites, exclude, quantiles, by, quantity, histogram, exact, sequences)
        found = ask_profile(self._backend, asked)
        return token_norms(found) if asked.by == TOKEN else found

    def features(self, sae: str) -> SaeFeatures:
        """All features of an SAE whose activations this run stores: to search, to compare, to check."""
        return SaeFeatures(self._source(sae), self._backend)

    def feature(self, sae: str, index: int) -> Feature:
        """Refuses at once an SAE that the run does not store, or an index past its width."""
        return self.features(sae)[index]

    def encode(self, saes: str | Iterable[str], *, name: str | None = None) -> "Capture":
        """Run SAEs over this run's stored rows, without its model; `.wait()` gives the new run.

        It has all that this one has, of the same tokens and not copied, and these SAEs' features as well: the same, bit
        for bit, as if they had been captured with it, where rows are stored in the model's own dtype. This run must be
        complete and store the sites that the SAEs read, at all positions. While the new run is there this one cannot
        be removed.
        """
        chosen = _checks.names(saes, "saes")
        if not chosen:
            raise refused("name an SAE to encode with", "saes", repr(saes), "`lab.saes()` lists those known")
        asked = CaptureSpecification(run=_checks.text(name or "", "name"), saes=chosen, rows_of=self.name)
        return start_capture(self._backend, asked)

    def _source(self, sae: str) -> SaeOfRun:
        widths = {attachment.name: attachment.d_sae for attachment in self.saes}
        if sae not in widths:
            message = f"run {self.name!r} stores no features of an SAE {sae!r}"
            raise refused(message, "sae", sae, sorted(widths) or "none: capture with saes=[...]", "SAE_NOT_FOUND")
        return SaeOfRun(self.name, sae, widths[sae], self.model, self.specification.prepend_bos)

    def activations(
        self,
        site: str | Sequence[str],
        sequences: range | slice | None = None,
        *,
        positions: range | slice | None = None,
        documents: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
        exclude: Excluded = (),
        columns: Iterable[str] | str = ROW_COLUMNS,
    ) -> Activations:
        """Stored vectors of one dense site, or of several side by side; all of it lands in memory.

        Rows are those of the sequences, positions, documents and token ids given (None: all), without the token classes
        in `exclude` (bos, special, sink). A range that begins past the last sequence is refused; one that goes on past
        it ends there. `columns` are those that come beside the vectors. `actstore_storage.rows.loader`
        reads a bucket for training, shuffled and without holding it in memory.
        """
        sites = _checks.names(site, "site")
        if not sites:
            raise refused("name a site to read", "site", repr(site), self.dense_sites)
        question = ReadActivations(
            self.name,
            sites,
            columns=_checks.several_of(columns, "columns", ROW_COLUMNS),
            where=Where(sequences, positions, documents, tokens).selection(),
            exclude=exclusion(exclude),
        )
        table, provenance = self._backend.rows(question)
        return Activations(table=table, sites=sites, provenance=provenance, excluded=tuple(sorted(question.exclude)))

    def tokens(
        self,
        sequences: range | slice | None = None,
        *,
        positions: range | slice | None = None,
        documents: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
        exclude: Excluded = (),
    ) -> Answer:
        """Columns sequence, position, document, token, flags (1 BOS, 2 special, 4 sink) and text; then source and row
        of the document, as of examples. Rows as above.
        """
        where = Where(sequences, positions, documents, tokens).selection()
        question = ReadTokens(self.name, where, exclusion(exclude))
        table, provenance = self._backend.rows(question)
        return Answer(table=table, provenance=provenance, excluded=tuple(sorted(question.exclude)))

    def export(self, site: str, folder: str | Path, *, layout: str = "safetensors") -> int:
        """Stored vectors of a site as files for other programs; how many files, or contexts. On a bucket only.

        `layout` safetensors: tensors `activation` and the tokens' columns, about a gigabyte a file. `saelens`: what its
        `cached_activations_path` takes, whole contexts only, in float32.
        """
        layout = _checks.one_of(layout, "layout", ("safetensors", "saelens"))
        return self._backend.export(self.name, _checks.text(site, "site"), layout, Path(folder))

    def _rows(self) -> list[dict[str, object]]:
        asked = self.specification
        facts = {
            "model": self.model.name + (f"@{self.model.revision}" if self.model.revision else ""),
            "dataset": dataset_name(asked),
            "tokens": f"{self.tokens_committed:,} of {self.tokens_total:,}",
            "shards": f"{self.provenance.shards_committed} of {self.provenance.shards_total}",
            "layers x d_model": f"{self.layer_count} x {self.d_model}",
            "dense sites": ", ".join(self.dense_sites) or "none",
            "norms of": f"{len(self.norm_sites)} sites",
            **({"rows of": f"run {asked.rows_of}"} if asked.rows_of else {}),
            "SAEs": ", ".join(f"{sae.name} ({sae.d_sae:,} features of {sae.site})" for sae in self.saes) or "none",
        }
        return [{"": name, self.name: fact} for name, fact in facts.items()]

    def __repr__(self) -> str:
        state = "complete" if self.complete else "incomplete"
        return f"Run {self.name} ({state})\n" + _text.grid(["", self.name], self._rows())

    def _repr_html_(self) -> str:
        return markup.grid(["", self.name], self._rows()) + markup.note(self.provenance.summary)


class Capture:
    """Goes on by itself in the workers, whether or not anyone watches."""

    def __init__(self, run_name: str, backend: Backend) -> None:
        self.run_name = run_name
        # Of the dataset, as the last news told.
        self.dataset_files = DatasetFiles()
        self._backend = backend

    def __repr__(self) -> str:
        return f"Capture of run {self.run_name}: .wait() for it, .progress() to look, .cancel() to stop it"

    def progress(self) -> Iterator[CaptureProgress]:
        """News at each commit and at least every few seconds, to the end. Raises the capture's error if it failed."""
        for news in watch(self._backend, self.run_name):
            self.dataset_files = news.dataset_files
            yield news

    def wait(self, progress: bool = True, check_saes: bool = True) -> Run:
        """The finished run. Draws a bar on stderr where that is a terminal; Ctrl-C leaves the capture running.

        Each SAE is then checked on some of the stored text, as `run.features(sae).check()` does: one that was trained
        on another site, scale or model is a SaeWarning, and so is a check that failed. `check_saes=False` does neither.
        """
        run = self._finished(progress)
        for said in sae_findings(run) if check_saes else ():
            warnings.warn(said, SaeWarning, stacklevel=2)
        return run

    def _finished(self, progress: bool) -> Run:
        bar = Bar(sys.stderr, f"capture {self.run_name}", enabled=progress)
        last = None
        try:
            for last in self.progress():
                bar.draw(last.tokens_committed, last.tokens_total, shards_in_words(last), "tokens")
        except KeyboardInterrupt:
            sys.stderr.write(f"\n{self._left_running()}\n")
            raise
        finally:
            bar.close()
        if last is not None and last.state == "cancelled":
            raise Cancelled(f"the capture of run {self.run_name} was cancelled", reason="CANCELLED")
        return open_run(self._backend, self.run_name)

    def cancel(self) -> CaptureProgress:
        """Stops within seconds. Committed shards stay readable, and the same capture again goes on from there."""
        found: CancelCaptureAnswer = self._backend.ask(CancelCapture(self.run_name))
        return unless_failed(found.progress)

    def _left_running(self) -> str:
        return (
            f"the capture of run {self.run_name} goes on without you; "
            f"`actstore cancel {self.run_name}` or `lab.attach({self.run_name!r}).cancel()` stops it"
        )


def sae_findings(run: Run) -> Iterator[str]:
    """What looks wrong with the SAEs of a run, a message an SAE; its features are stored either way."""
    for attachment in run.saes:
        try:
            found = run.features(attachment.name).check(warn=False).warnings
        except ActstoreError as error:
            found = (f"it was not checked: {error.message}",)
        if found:
            yield "\n  ".join([f"the SAE {attachment.name} may not be right for {run.model.name}:", *found])


def start_capture(backend: Backend, specification: CaptureSpecification) -> Capture:
    """It goes on by itself from here."""
    found: StartCaptureAnswer = backend.ask(StartCapture(specification))
    return Capture(found.run, backend)


def open_run(backend: Backend, name: str) -> Run:
    """A run that is there, as it is now."""
    found: catalog.GetRunAnswer = backend.ask(catalog.GetRun(name))
    return Run(found.run, backend)
