"""One run: what it stores, every question about it, and the capture that makes it."""

import sys
import warnings
from collections.abc import Iterable, Iterator

from actstore import _checks
from actstore._errors import ActstoreError, Cancelled, SaeWarning, refused
from actstore._features.asking import SaeOfRun
from actstore._features.feature import Feature
from actstore._features.features import SaeFeatures
from actstore._runs.norms import NormCalls
from actstore._runs.progress import shards_in_words, unless_failed, watch
from actstore._runs.rows import RowCalls
from actstore._runs.specification import dataset_name
from actstore._transport.base import Backend
from actstore._view import markup
from actstore._view import text as _text
from actstore._view.bar import Bar
from actstore_api.records import catalog
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


class Run(NormCalls, RowCalls):
    """One run: what it stores, and every question about it.

    Its properties are as they were when it was opened; each question reads what is committed when it is asked. A run
    is copied with its lab's connection, and cannot be pickled: pickle its name, and open it again with `lab.run(name)`.
    """

    def __init__(self, description: catalog.Run, backend: Backend) -> None:
        self._description = description
        self._backend = backend

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._description.name

    @property
    def specification(self) -> CaptureSpecification:
        """Everything that decides what the run stores, with every default filled in."""
        return self._description.specification

    @property
    def provenance(self) -> Provenance:
        """Model, weights and software that the run was captured with, and how much of it is committed."""
        return self._description.provenance

    @property
    def model(self) -> ModelReference:
        """Name and revision of the model."""
        return ModelReference(self.provenance.model, self.provenance.model_revision)

    @property
    def complete(self) -> bool:
        """Whether every shard was committed when the run was opened."""
        return self._description.complete

    @property
    def tokens_committed(self) -> int:
        """Number of tokens in committed shards, BOS included."""
        return self._description.tokens_committed

    @property
    def tokens_total(self) -> int:
        """Number of tokens of the finished run, BOS included."""
        return self._description.tokens_total

    @property
    def n_layers(self) -> int:
        """Number of layers of the model."""
        return self._description.n_layers

    @property
    def d_model(self) -> int:
        """Width of the model's residual stream."""
        return self._description.d_model

    @property
    def dense_sites(self) -> tuple[str, ...]:
        """Sites that are stored as whole vectors, by their short names, in order of layer."""
        return self._description.dense_sites

    @property
    def norm_sites(self) -> tuple[str, ...]:
        """Sites whose norms are stored, by their short names, in order of layer."""
        return self._description.norm_sites

    @property
    def saes(self) -> tuple[catalog.SaeAttachment, ...]:
        """SAEs whose features are stored."""
        return self._description.saes

    def features(self, sae: str) -> SaeFeatures:
        """Return all features of an SAE, to search, to compare and to check.

        Args:
            sae: Name of an SAE whose features the run stores.

        Raises:
            NotFound: The run stores no features of this SAE.
        """
        return SaeFeatures(self._source(sae), self._backend)

    def feature(self, sae: str, index: int) -> Feature:
        """Return one feature of an SAE. Nothing is asked of the store for it.

        Args:
            sae: Name of an SAE whose features the run stores.
            index: Index of the feature, from 0 to d_sae - 1.

        Raises:
            NotFound: The run stores no features of this SAE.
            BadRequest: The SAE has no such feature.
        """
        return self.features(sae)[index]

    def encode(self, saes: Iterable[str] | str, *, run: str | None = None) -> "Capture":
        """Start a run that encodes this one's stored vectors with more SAEs, without running the model.

        The new run has these SAEs' features, and all that this run has, which is not copied. If vectors are stored in
        the model's own dtype, the features equal those of a capture with the SAEs, bit for bit. This run must be
        complete, and store the sites that the SAEs read, at all positions. It cannot be removed while the new run
        exists.

        Args:
            saes: Names of SAEs.
            run: Name of the new run. None: made from model, dataset and specification.

        Returns:
            The capture of the new run; `.wait()` gives the run.
        """
        chosen = _checks.names(saes, "saes")
        if not chosen:
            raise refused("name an SAE to encode with", "saes", repr(saes), "`lab.saes()` lists those known")
        asked = CaptureSpecification(run=_checks.text(run or "", "run"), saes=chosen, rows_of=self.name)
        return start_capture(self._backend, asked)

    def _source(self, sae: str) -> SaeOfRun:
        widths = {attachment.name: attachment.d_sae for attachment in self.saes}
        if sae not in widths:
            message = f"run {self.name!r} stores no features of an SAE {sae!r}"
            raise refused(message, "sae", sae, sorted(widths) or "none: capture with saes=[...]", "SAE_NOT_FOUND")
        return SaeOfRun(self.name, sae, widths[sae], self.model, self.specification.prepend_bos)

    def _rows(self) -> list[dict[str, object]]:
        asked = self.specification
        facts = {
            "model": self.model.name + (f"@{self.model.revision}" if self.model.revision else ""),
            "dataset": dataset_name(asked),
            "tokens": f"{self.tokens_committed:,} of {self.tokens_total:,}",
            "shards": f"{self.provenance.shards_committed} of {self.provenance.shards_total}",
            "n_layers x d_model": f"{self.n_layers} x {self.d_model}",
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
    """A capture under way. It goes on in the workers, whether or not anyone watches.

    Attributes:
        run: Name of the run that it makes.
        dataset_files: Which files of the dataset are read, as the last progress said.
    """

    def __init__(self, run: str, backend: Backend) -> None:
        self.run = run
        self.dataset_files = DatasetFiles()
        self._backend = backend

    def __repr__(self) -> str:
        return f"Capture of run {self.run}: .wait() for it, .progress() to look, .cancel() to stop it"

    def progress(self) -> Iterator[CaptureProgress]:
        """Yield how far the capture is, at each commit and at least every few seconds, until it ends.

        Raises:
            ActstoreError: The capture failed. The error has the reason that the capture gave.
        """
        for news in watch(self._backend, self.run):
            self.dataset_files = news.dataset_files
            yield news

    def wait(self, progress: bool = True, check_saes: bool = True) -> Run:
        """Wait until the capture ends, and return its run. Ctrl-C leaves the capture running.

        Args:
            progress: Draw a bar on stderr, if that is a terminal.
            check_saes: Check each SAE on some of the stored text, as `run.features(sae).check()` does, and warn with a
                SaeWarning if it looks wrong (another site, scale or model) or cannot be checked.

        Returns:
            The finished run.

        Raises:
            Cancelled: The capture was cancelled.
            ActstoreError: The capture failed. The error has the reason that the capture gave.
        """
        checked = _checks.switch(check_saes, "check_saes")
        run = self._finished(_checks.switch(progress, "progress"))
        for said in sae_findings(run) if checked else ():
            warnings.warn(said, SaeWarning, stacklevel=2)
        return run

    def _finished(self, progress: bool) -> Run:
        bar = Bar(sys.stderr, f"capture {self.run}", enabled=progress)
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
            raise Cancelled(f"the capture of run {self.run} was cancelled", reason="CANCELLED")
        return open_run(self._backend, self.run)

    def cancel(self) -> CaptureProgress:
        """Stop the capture, within seconds. Committed shards stay readable; the same capture again goes on from there.

        Returns:
            How far it was.
        """
        found: CancelCaptureAnswer = self._backend.ask(CancelCapture(self.run))
        return unless_failed(found.progress)

    def _left_running(self) -> str:
        return (
            f"the capture of run {self.run} goes on without you; "
            f"`actstore cancel {self.run}` or `lab.attach({self.run!r}).cancel()` stops it"
        )


def sae_findings(run: Run) -> Iterator[str]:
    """Messages about SAEs of a run that look wrong, one for each SAE; its features are stored either way."""
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
    """Opens a stored run, as it is now."""
    found: catalog.GetRunAnswer = backend.ask(catalog.GetRun(name))
    return Run(found.run, backend)
