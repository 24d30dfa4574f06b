"""The lab: lists of what is there, and all of its questions."""

from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Self, Unpack

from actstore import _checks
from actstore._answer import Verdict
from actstore._checks import Text
from actstore._errors import refused
from actstore._models.calls import ModelCalls
from actstore._norms.asking import steps_of
from actstore._norms.weights import WeightNorms, ask_weights
from actstore._patching.calls import PatchingCalls
from actstore._runs.checkpoints import Captures, Checkpoints, check_revisions, run_of_revision
from actstore._runs.listings import Listings
from actstore._runs.run import Capture, Run, open_run, start_capture
from actstore._runs.specification import Batching, CaptureOptions, Dataset, specification
from actstore._signatures import spelled_out
from actstore._transport.base import Backend
from actstore._where import NamedRun, StoredText, run_name, stored_text
from actstore_api.records.capture import CaptureEstimate, EstimateCapture, EstimateCaptureAnswer, Positions
from actstore_api.records.information import ServiceInfo
from actstore_api.records.model import GetWeightNorms
from actstore_api.records.terms import Dtype, ModelReference


class Lab(Listings, ModelCalls, PatchingCalls):
    """A connection to a service, or to a bucket without one. `actstore.connect` opens it.

    `with actstore.connect() as lab:` closes it, and so does the end of the program. A lab cannot be pickled; its
    answers can.

    Attributes:
        closed: Whether it was closed.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.closed = False

    @property
    def address(self) -> str:
        """Where it asks: `host:port`, a folder or `s3://bucket/prefix`."""
        return self._backend.address

    def __repr__(self) -> str:
        listings = ".runs(), .models(), .saes(), .datasets()"
        return f"Lab at {self.address}: {listings}, .run(name), .capture(...), .patch(...), .steer(...)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Answers stay; every further question is refused."""
        self._backend.close()
        self.closed = True

    def service_info(self) -> ServiceInfo:
        """Ask the service for its version, its limits and your roles, and for the version of its workers.

        Raises:
            BadRequest: The lab is a bucket, or the service is too old to say (SERVICE_TOO_OLD).
        """
        return self._backend.service_info()

    def run(self, run: str) -> Run:
        """Open a run.

        Args:
            run: Its name; `lab.runs()` lists them.

        Raises:
            NotFound: The store has no run of this name.
        """
        return open_run(self._backend, _checks.text(run, "run"))

    def check(self, run: NamedRun | str | None = None, *, quick: bool = False, remove_orphans: bool = False) -> Verdict:
        """Read every object of the store, or of one run, and compare it with its record. Only on a bucket.

        Args:
            run: A run, or its name. None: the whole store.
            quick: Leave out the checks that read every byte.
            remove_orphans: Remove objects that no record names, which crashes leave behind. Objects of a run
                that is being captured are kept, because the objects of an attempt under way look like orphans.

        Returns:
            What was found, and whether the store is sound.

        Raises:
            BadRequest: The lab is a service.
            NotFound: There is no run of this name.
        """
        name = None if run is None else run_name(run, "run")
        return self._backend.check_runs(
            name, _checks.switch(quick, "quick"), _checks.switch(remove_orphans, "remove_orphans")
        )

    def remove(self, run: NamedRun | str, *, force: bool = False) -> int:
        """Remove a run from the bucket, for good. Only on a bucket, not through a service.

        Args:
            run: The run, or its name.
            force: Remove it even if it is being captured (the capture then fails), or if other runs use its rows (these
                runs then cannot be read).

        Returns:
            Number of objects that were removed.

        Raises:
            BadRequest: The lab is a service.
            NotFound: There is no run of this name.
            Conflict: The run is being captured, or other runs are over its rows.
        """
        return self._backend.remove_run(run_name(run, "run"), _checks.switch(force, "force"))

    def attach(self, run: str) -> Capture:
        """Return a capture that was started before, to watch it, wait for it or cancel it.

        Args:
            run: Name of the run that it makes.
        """
        return Capture(_checks.text(run, "run"), self._backend)

    def capture(
        self,
        model: str,
        *,
        dataset: str | Dataset,
        revision: str = "",
        run: str | None = None,
        dense_sites: Iterable[str] | str = (),
        norm_sites: Iterable[str] | str | None = None,
        saes: Iterable[str] | str = (),
        positions: Positions | None = None,
        max_tokens: int | None = None,
        context_length: int | None = None,
        prepend_bos: bool | None = None,
        sink_ratio: float | None = None,
        dtype: Dtype = "float32",
        storage_dtype: Dtype | None = None,
        widen_on_overflow: bool = False,
        batching: Batching | None = None,
    ) -> Capture:
        """Run a model over text in the workers, and store what it shows. `.wait()` gives the run.

        The same capture again is the same run, and finishes it.

        A site is `resid_post.2`, or `resid_post` for that site of every layer. Of sites with heads (q, k, v, z and
        pattern) `z.2` has all heads of layer 2 side by side, and `z.2.5` head 5 alone.

        Args:
            model: Name of a model; `lab.models()` lists them.
            dataset: Name of a dataset; `lab.datasets()` lists them. A `Dataset` says which columns and rows are read.
            revision: Revision of the model. Empty: the model itself.
            run: Name of the run. None: made from model, dataset and options.
            dense_sites: Sites that are stored as whole vectors. Empty: none.
            norm_sites: Sites whose norms are stored. None: every site of every layer. An empty collection is refused.
            saes: SAEs whose nonzero features are stored. Empty: none.
            positions: Tokens whose vectors are stored: `Positions.last()`, `.every(4)`, `.random(0.1, seed=0)` or
                `.active(sae, feature)`. None: all. Norms and features are of every token.
            max_tokens: Tokens of the whole run, BOS included; it ends after the last whole sequence within them. None:
                the whole dataset.
            context_length: Tokens of a sequence, BOS included. None: as many as the model reads (n_ctx).
            prepend_bos: Whether each sequence begins with a BOS. None: if the tokenizer has one, but never before
                token ids.
            sink_ratio: A token is flagged as a sink if its norm is more than this many times the median of its
                sequence. None: 10. 0: no token is flagged.
            dtype: Element type in which the model computes.
            storage_dtype: Element type of stored vectors. None: the same as `dtype`.
            widen_on_overflow: Store a site of a shard as float32 if `storage_dtype` cannot hold one of its values. If
                False, the shard is refused.
            batching: How sequences are grouped into batches. None: the workers' settings.

        Returns:
            The capture, which goes on in the workers.

        Raises:
            BadRequest: An argument cannot be used.
            NotFound: There is no such model, dataset or SAE.
            Conflict: A run of this name was captured with other options.
        """
        asked = specification(
            model,
            dataset,
            revision=revision,
            run=run,
            dense_sites=dense_sites,
            norm_sites=norm_sites,
            saes=saes,
            positions=positions,
            max_tokens=max_tokens,
            context_length=context_length,
            prepend_bos=prepend_bos,
            sink_ratio=sink_ratio,
            dtype=dtype,
            storage_dtype=storage_dtype,
            widen_on_overflow=widen_on_overflow,
            batching=batching,
        )
        return start_capture(self._backend, asked)

    @spelled_out(capture)
    def estimate_capture(
        self,
        model: str,
        *,
        dataset: str | Dataset,
        revision: str = "",
        run: str | None = None,
        **options: Unpack[CaptureOptions],
    ) -> CaptureEstimate:
        """Estimate what `capture` with the same arguments would take. Nothing is stored, and the model is not run.

        Args:
            model: As in `capture`.
            dataset: As in `capture`.
            revision: As in `capture`.
            run: As in `capture`.
            **options: As in `capture`.

        Returns:
            Tokens, bytes of each product, and seconds.
        """
        question = EstimateCapture(specification(model, dataset, revision=revision, run=run, **options))
        found: EstimateCaptureAnswer = self._backend.ask(question)
        return found.estimate

    @spelled_out(capture)
    def capture_revisions(
        self,
        model: str,
        revisions: Iterable[str],
        *,
        dataset: str | Dataset,
        run: str | None = None,
        steps: Iterable[float] | None = None,
        **options: Unpack[CaptureOptions],
    ) -> Captures:
        """Capture several revisions of a model with the same options, one run for each. `.wait()` gives `Checkpoints`.

        The same request again finishes what is missing. If a revision is refused, those before it go on.

        Args:
            model: As in `capture`.
            revisions: Revisions of the model, each once.
            dataset: As in `capture`.
            run: Beginning of the runs' names, `<run>-<revision>`. None: made from model, dataset and options.
            steps: Places of the revisions in training, one each. None: the numbers at the ends of their names.
            **options: As in `capture`.

        Returns:
            The captures, which go on in the workers.
        """
        wanted = _checks.names(revisions, "revisions")
        places = steps_of(steps)
        check_revisions(wanted, places)
        alike = specification(model, dataset, **options)
        asked = [replace(alike, run=run_of_revision(run, one), model=ModelReference(model, one)) for one in wanted]
        captures = [start_capture(self._backend, one) for one in asked]
        return Captures(captures, places, self._backend)

    def checkpoints(self, runs: Iterable[Run | str] | Run | str, steps: Iterable[float] | None = None) -> Checkpoints:
        """Put runs of several revisions of one model side by side, as `capture_revisions` makes them.

        Args:
            runs: Runs, or their names. All are over the same text.
            steps: Places of the runs in training, one each. None: the numbers at the ends of the revisions' names.

        Raises:
            BadRequest: There are no runs, or they are of several models.
        """
        if not isinstance(runs, Run | Iterable):
            raise refused(f"runs must be runs or their names, not {runs!r}", "runs", repr(runs), "runs, or their names")
        named = (runs,) if isinstance(runs, Run | str) else tuple(runs)
        opened = [run if isinstance(run, Run) else self.run(run) for run in named]
        return Checkpoints(opened, steps_of(steps), self._backend)

    def weights(
        self,
        model: str,
        *,
        layers: Iterable[int] | None = None,
        samples: int = GetWeightNorms.samples,
        seed: int = GetWeightNorms.seed,
        text: Text | None = None,
        stored: StoredText | NamedRun | str | None = None,
        revision: str = "",
        prepend_bos: bool | None = None,
    ) -> WeightNorms:
        """Return norms of a model's weights, and of what attention and MLP write on random input. Needs a service.

        With a text, or with the text of a run, real input is put beside the random one, which tells how many MLP units
        are active on it.

        Args:
            model: A model's name, of `lab.models()`.
            layers: Numbers of layers, at least one. None: all. Embeddings and unembedding come in any case.
            samples: How many random inputs go through each layer: 2 to 65,536.
            seed: Which inputs are drawn: the same seed draws the same. 0 to 2^32 - 1.
            text: Text, or token ids, that is read to compare. None: none is.
            stored: A run of these weights with the text that is read to compare, its name, or a `StoredText` with more
                choices. None: none is.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put before `text`. None: before text if the tokenizer has one, never before
                ids.

        Returns:
            One row for each matrix, vector or head. `sublayers` has what layers write.
        """
        question = GetWeightNorms(
            **_checks.of_model(model, revision, prepend_bos),
            layers=_checks.some_numbers(layers, "layers"),
            samples=_checks.count(samples, "samples"),
            seed=_checks.seed(seed),
            text=None if text is None else _checks.prompt(text, "text"),
            stored=stored_text(stored),
        )
        return ask_weights(self._backend, question)
