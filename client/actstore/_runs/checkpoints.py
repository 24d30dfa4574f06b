"""Runs of several revisions of one model over the same text: growth over depth and over training, kept apart."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from actstore import _checks
from actstore._errors import ActstoreError, refused
from actstore._norms.answer import ExcludedFromNorms, NormSize
from actstore._norms.asking import (
    NormGrouping,
    growth_axis,
    growth_question,
    profile_question,
    separability_question,
)
from actstore._norms.growth import Growth, ask_growth
from actstore._norms.profiles import CheckpointNorms, ask_checkpoints
from actstore._norms.separability import Separability, ask_separability
from actstore._runs.run import Capture, Run
from actstore._transport.base import Backend
from actstore._view import text as _text
from actstore_api.records.capture import CaptureProgress
from actstore_api.records.norm import FitGrowth, GetSeparability, GrowthAxis, NormQuantity


class Checkpoints:
    """Several runs of one model over the same text, side by side; each question reads what is committed when asked.

    Iterating yields the runs. No answer is a mean over checkpoints, because growth over depth and growth over training
    are different things. An answer has rows for each layer and checkpoint, or it is about one checkpoint or one layer.

    Attributes:
        runs: The runs.
        steps: Their places in training. Empty: the numbers at the ends of the revisions' names.
    """

    def __init__(self, runs: Sequence[Run], steps: Sequence[float], backend: Backend) -> None:
        self.runs = tuple(runs)
        self.steps = tuple(steps)
        self._backend = backend
        _check_models(self.runs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the runs."""
        return tuple(run.name for run in self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        *,
        by: NormGrouping = "layer",
        quantity: NormQuantity = FitGrowth.quantity,
        exclude: ExcludedFromNorms = None,
        quantiles: Iterable[float] | None = None,
        histogram: int | Iterable[float] | None = None,
        exact: bool = False,
    ) -> CheckpointNorms:
        """Return how large the activations of each site are, in each run by itself.

        Args:
            sites: Site kinds (`resid_post`) or single sites (`resid_post.3`). None: all whose norms are stored.
            by: What a row is of, as in `Run.norms`.
            quantity: What is measured of each token's activation, as in `Run.norms`.
            exclude: Tokens that do not count, as in `Run.norms`. None: `bos`. Empty: every token counts.
            quantiles: Quantiles, each from 0 to 1, as in `Run.norms`. None: five. Empty: none.
            histogram: Bins or edges, as in `Run.norms`. None: no histogram.
            exact: Compute quantiles and histograms from every token's norm, as in `Run.norms`.

        Returns:
            Each run's rows, with columns revision and step in front.
        """
        asked = profile_question(
            self.names, sites, by, quantity, exclude, quantiles, histogram, exact, steps=self.steps
        )
        return ask_checkpoints(self._backend, asked, by)

    def fit_growth(
        self,
        axis: GrowthAxis = FitGrowth.axis,
        site: str = GetSeparability.site,
        *,
        layers: Iterable[int] | None = None,
        quantity: NormSize = "l2",
        exclude: ExcludedFromNorms = None,
        resamples: int = FitGrowth.resamples,
        seed: int = FitGrowth.seed,
    ) -> list[Growth]:
        """Fit how fast the mean norm grows, over depth in each run or over training at each layer.

        `actstore.plot_growth` draws all answers on one plot.

        Args:
            axis: `layer`: over the layers, an answer for each run. `checkpoint`: over training, an answer for each
                layer; it takes three runs or more.
            site: A site kind, such as `resid_post`.
            layers: The layers to fit, as [3] or range(1, 4); over depth side by side and at least three. None: all.
            quantity: A measure of size, as in `Run.fit_growth`.
            exclude: Tokens that do not count, as in `Run.norms`. None: `bos`. Empty: every token counts.
            resamples: Bootstrap resamples of sequences for the intervals, at most 10,000. 0: no intervals.
            seed: Draws the resamples.

        Returns:
            A fit for each run, or for each layer.
        """
        over = growth_axis(axis)
        between = layers if over == "layer" else None
        question = growth_question(self.names, site, between, exclude, quantity, resamples, seed)
        if over == "layer":
            asked = [replace(question, runs=(name,)) for name in self.names]
        else:
            places = self._single_sites(question.site, layers)
            asked = [replace(question, axis=over, site=place, steps=self.steps) for place in places]
        return [ask_growth(self._backend, one) for one in asked]

    def separability(
        self,
        site: str = GetSeparability.site,
        *,
        layers: Iterable[int] | None = None,
        quantity: NormSize = "l2",
        exclude: ExcludedFromNorms = None,
    ) -> Separability:
        """Tell whether the mean norm is a factor of the layer times a factor of the checkpoint.

        Args:
            site: A site kind, such as `resid_post`.
            layers: The layers, side by side and at least two, as range(1, 4). None: all.
            quantity: A measure of size, as in `Run.fit_growth`.
            exclude: Tokens that do not count, as in `Run.norms`. None: `bos`. Empty: every token counts.

        Returns:
            The shares that layer and checkpoint explain, and a verdict.
        """
        asked = separability_question(self.names, self.steps, site, layers, exclude, quantity)
        return ask_separability(self._backend, asked)

    def _single_sites(self, kind: str, layers: Iterable[int] | None) -> list[str]:
        """The kind's sites at these layers. If none is stored, names that the answerer will refuse in its own words."""
        stored = {site for site in self.runs[0].norm_sites if site.rpartition(".")[0] == kind}
        there = sorted(int(site.rpartition(".")[2]) for site in stored)
        listed = _checks.some_numbers(layers, "layers") or tuple(there)
        missing = [layer for layer in listed if there and layer not in there]
        if missing:
            message = f"{kind} has no norms at layer {missing[0]}"
            allowed = f"of {', '.join(map(str, there))}"
            raise refused(message, "layers", ", ".join(map(str, listed)), allowed, "LAYER_OUT_OF_RANGE")
        return [f"{kind}.{layer}" for layer in listed if there] or [kind]

    def __repr__(self) -> str:
        model = self.runs[0].model.name
        rows = [{"run": run.name, "revision": run.model.revision or "(main)"} for run in self.runs]
        title = f"{len(self)} checkpoints of {model}: .norms(), .fit_growth(axis), .separability()"
        return f"{title}\n{_text.grid(['run', 'revision'], rows)}"


def _check_models(runs: Sequence[Run]) -> None:
    if not runs:
        raise refused("checkpoints are of one run or more", "runs", "none", "names of runs, or runs")
    first = runs[0]
    for run in runs[1:]:
        expected, found = first.model.name, run.model.name
        if found != expected:
            message = f"runs {first.name} and {run.name} cannot be compared: their model is {expected} and {found}"
            raise refused(message, "model", found, expected, "RUNS_DIFFER")


def check_revisions(revisions: Sequence[str], steps: Sequence[float]) -> None:
    """Before anything is started."""
    if not revisions or len(set(revisions)) < len(revisions):
        message = "revisions must name one or more revisions, each once"
        raise refused(message, "revisions", revisions or "none", "names of revisions")
    if steps and len(steps) != len(revisions):
        message = f"{len(steps)} steps for {len(revisions)} revisions"
        raise refused(message, "steps", f"{len(steps)} of them", f"{len(revisions)}, or none")


def run_of_revision(run: str | None, revision: str) -> str:
    """A name for the run of a revision, of characters that a name may have; without `run`, the answerer's default."""
    if not _checks.text(run or "", "run"):
        return ""
    return f"{run}-{re.sub('[^A-Za-z0-9._]+', '-', revision) or 'main'}"


class Captures:
    """Captures of several revisions under way. They go on in the workers, whether or not anyone watches.

    Attributes:
        captures: The captures, in the order of the revisions.
    """

    def __init__(self, captures: Sequence[Capture], steps: Sequence[float], backend: Backend) -> None:
        self.captures = tuple(captures)
        self._steps = tuple(steps)
        self._backend = backend

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs that they make."""
        return tuple(capture.run for capture in self.captures)

    def __repr__(self) -> str:
        return f"Captures of runs {', '.join(self.runs)}: .wait() for them, .progress() to look, .cancel()"

    def progress(self) -> Iterator[CaptureProgress]:
        """Yield how far the captures are, one after the other, each to its end; `run` names the capture's run.

        Raises:
            ActstoreError: A capture failed. The error has the reason that the capture gave.
        """
        for capture in self.captures:
            yield from capture.progress()

    def wait(self, progress: bool = True, check_saes: bool = True) -> Checkpoints:
        """Wait until all captures end, and return their runs. Ctrl-C leaves them running.

        If one fails, its error is raised after the others have ended. They are kept, and the same request again
        finishes what is missing.

        Args:
            progress: Draw a bar on stderr for each, if that is a terminal.
            check_saes: Check each SAE on some of the stored text, as in `Capture.wait`.

        Returns:
            The finished runs.

        Raises:
            Cancelled: A capture was cancelled.
            ActstoreError: A capture failed. The error has the reason that the capture gave.
        """
        runs, failed = [], []
        for capture in self.captures:
            try:
                runs.append(capture.wait(progress, check_saes))
            except ActstoreError as error:
                failed.append(error)
        if failed:
            raise failed[0]
        return Checkpoints(runs, self._steps, self._backend)

    def cancel(self) -> list[CaptureProgress]:
        """Stop the captures, within seconds. Committed shards stay readable.

        Returns:
            How far each was.
        """
        return [capture.cancel() for capture in self.captures]
