"""The lab: what is there, and everything that can be asked of it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, Unpack

from actstore import _checks
from actstore._answer import Verdict
from actstore._checks import Text
from actstore._errors import refused
from actstore._models.calls import ModelCalls
from actstore._norms.asking import growth_question, steps_of
from actstore._norms.growth import Growth, ask_growth
from actstore._norms.layers import first_and_last
from actstore._norms.weights import WeightNorms, ask_weights
from actstore._patching.calls import PatchingCalls
from actstore._runs.checkpoints import Captures, Checkpoints, check_revisions, run_of_revision
from actstore._runs.listings import Listings
from actstore._runs.run import Capture, Run, open_run, start_capture
from actstore._runs.specification import CaptureOptions, specification
from actstore._transport.base import Backend
from actstore._where import Excluded, NamedRun, StoredText, stored_text
from actstore_api.records.capture import CaptureEstimate, EstimateCapture, EstimateCaptureAnswer
from actstore_api.records.model import GetWeightNorms
from actstore_api.records.norm import FitGrowth, GetSeparability


class Lab(Listings, ModelCalls, PatchingCalls):
    """A connection; `with actstore.connect() as lab:` closes it, and so does the end of the program."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.closed = False

    @property
    def address(self) -> str:
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
        self._backend.close()
        self.closed = True

    def run(self, name: str) -> Run:
        return open_run(self._backend, _checks.text(name, "run"))

    def check(self, run: str | None = None, *, quick: bool = False, remove_orphans: bool = False) -> Verdict:
        """Reads every object of a run (None: of the whole store) and compares it with its record.

        `quick` leaves out what reads every byte. Orphans of a run that is being captured are left, since those of an
        attempt under way look the same. On a bucket, not through a service.
        """
        name = None if run is None else _checks.text(run, "run")
        return self._backend.check_runs(name, bool(quick), bool(remove_orphans))

    def remove(self, run: str, *, force: bool = False) -> int:
        """Remove a run from the bucket, for good; how many objects that were. On a bucket, not through a service.

        One that is being captured is refused unless by `force`; its capture then fails.
        """
        return self._backend.remove_run(_checks.text(run, "run"), bool(force))

    def attach(self, run_name: str) -> Capture:
        """A capture that someone started before."""
        return Capture(_checks.text(run_name, "run"), self._backend)

    def capture(
        self,
        model: str,
        *,
        dataset: str,
        revision: str = "",
        name: str | None = None,
        **options: Unpack[CaptureOptions],
    ) -> Capture:
        """Run a model over text in the workers and store what it shows; `.wait()` gives the run.

        `sites` are stored as whole vectors, `norms` as L2 norms (None and an empty collection both mean every site),
        `saes` as their nonzero features.
        A site is `resid_post.2`, or `resid_post` for that site of every layer; of q, k, v, z and pattern, `z.2` has all
        heads of a layer and `z.2.5` one. `context_length` (None: the model's) counts tokens of a sequence, `max_tokens`
        of the whole run, both with BOS; `bos` None follows the tokenizer. The same capture again is the same run, and
        finishes it.

        `dataset` is a path below the workers' dataset folders or stores, or `hf:OWNER/NAME:SPLIT`. Of a table,
        `text_field` or (token ids) `tokens_field` is the column to read; `filters` keep rows, as pyarrow's do:
        ("language", "==", "en"); `max_documents` counts those kept. A document's source, shown with its examples, is
        its file and row, or what the column `source_field` says. `estimate` and the capture's progress name files of a
        folder that are not read.

        `storage_dtype` (empty: `dtype`) is what vectors are stored in; a value that it cannot hold refuses the shard,
        or stores that site of it as float32 with `widen_on_overflow`. `positions` chooses the tokens whose vectors are
        stored: Positions.last(), .every(4), .random(0.1, seed=0), .active(sae, feature). `packing` puts several
        sequences into a row of a batch, without attention between them. A token is flagged as a sink where its norm
        exceeds its sequence's median `sink_ratio` times (None: 10; 0: none is).
        """
        return start_capture(self._backend, specification(model, dataset, revision=revision, name=name, **options))

    def estimate(
        self,
        model: str,
        *,
        dataset: str,
        revision: str = "",
        name: str | None = None,
        **options: Unpack[CaptureOptions],
    ) -> CaptureEstimate:
        """What `capture` with the same arguments would take: tokens, bytes by product, seconds. Nothing is stored."""
        question = EstimateCapture(specification(model, dataset, revision=revision, name=name, **options))
        found: EstimateCaptureAnswer = self._backend.ask(question)
        return found.estimate

    def capture_revisions(
        self,
        model: str,
        revisions: Iterable[str],
        *,
        dataset: str,
        name: str = "",
        steps: Sequence[float] | None = None,
        **options: Unpack[CaptureOptions],
    ) -> Captures:
        """`capture` for each of several revisions of a model, alike in all else; `.wait()` gives `Checkpoints`.

        Each is a run of its own: with a `name`, `<name>-<revision>`. `steps` are the revisions' places in training, one
        each; None: the numbers at the ends of their names. The same request again finishes what is missing. A revision
        that is refused leaves those before it running.
        """
        wanted = _checks.names(revisions, "revisions")
        places = steps_of(steps)
        check_revisions(wanted, places)
        asked = [
            specification(model, dataset, revision=one, name=run_of_revision(name, one), **options) for one in wanted
        ]
        captures = [start_capture(self._backend, one) for one in asked]
        return Captures(captures, places, self._backend)

    def fit_growth(
        self,
        runs: Run | str | Iterable[Run | str],
        axis: str = FitGrowth.axis,
        *,
        site: str | None = None,
        layers: tuple[int, int] | None = None,
        exclude: Excluded = None,
        steps: Sequence[float] | None = None,
        resamples: int = FitGrowth.resamples,
        seed: int = FitGrowth.seed,
        quantity: str = FitGrowth.quantity,
    ) -> Growth:
        """How fast the mean L2 norm grows: over the layers of one run, or over training at one site of several runs.

        `axis` "layer" takes one run, a site kind (None: resid_post) and the first and last layer, both included (None:
        every layer). `axis` "checkpoint" takes at least three runs of one model over the same tokens, a single site
        (None: resid_post of the last layer), and where each stands in training (`steps`; None: the numbers at the ends
        of the revisions' names). The two never mix: growth over depth and growth over training are different things.

        `exclude` as in `run.norms`. `quantity` is a measure of size: l2; rms, at the same rate, which compares models
        of several widths; standard_deviation and centred_l2, without the mean over d_model.
        """
        several = (runs,) if isinstance(runs, Run | str) else tuple(runs)
        names = tuple(_name_of(run, "runs") for run in several)
        default = GetSeparability.site if axis == "layer" else ""
        question = growth_question(
            names, axis, default if site is None else site, layers, exclude, quantity, resamples, seed
        )
        _check_growth(question, steps)
        return ask_growth(self._backend, replace(question, steps=steps_of(steps)))

    def checkpoints(self, runs: Iterable[Run | str], steps: Sequence[float] | None = None) -> Checkpoints:
        """Runs of several revisions of one model over the same text, as `capture_revisions` makes them.

        `steps` are their places in training; None: the numbers at the ends of the revisions' names.
        """
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
        """Norms of every weight matrix by layer and head, and what attention and MLP write on random input. Live.

        With a text, or with the text of a run, real input is put beside the random one, which tells how many MLP units
        are active on it.

        Args:
            model: A model's name, of `lab.models()`.
            layers: Numbers of layers, at least one. None: all. Embeddings and unembedding come in any case.
            samples: How many random inputs go through each layer: 2 to 65,536.
            seed: Which inputs are drawn: the same seed draws the same. 0 to 2^32 - 1.
            text: Text, or token ids, that is read to compare. None: none is.
            stored: A run of these weights whose text is read to compare, its name, or `StoredText`, which says more.
                None: none is.
            revision: The model's revision. Empty: the one that the name stands for by itself.
            prepend_bos: Whether a BOS is put before `text`. None: before text where the tokenizer has one, never before
                ids.

        Returns:
            A row a matrix, vector or head; what layers write in `sublayers`.
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


def _check_growth(question: FitGrowth, steps: object) -> None:
    """What can be said of one axis and not of the other. Errors: BadRequest."""
    axis, runs = question.axis, question.runs
    if not runs or (axis == "layer" and len(runs) > 1):
        allowed = "one run" if axis == "layer" else "three runs or more"
        raise refused(f"growth by {axis} is not of {len(runs)} runs", "runs", f"{len(runs)} runs", allowed)
    if axis == "checkpoint" and question.layers is not None:
        layers = repr(first_and_last(question.layers))
        raise refused("growth over checkpoints is of one site", "layers", layers, "None, and a site: resid_post.3")
    if axis == "layer" and steps is not None:
        raise refused("the steps of growth over layers are the layers", "steps", repr(steps), "None")


def _name_of(run: Run | str, field: str) -> str:
    return run.name if isinstance(run, Run) else _checks.text(run, field)
