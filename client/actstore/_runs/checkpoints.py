"""Runs of several revisions of one model over the same text: growth over depth and over training, kept apart."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from actstore import _checks
from actstore._errors import ActstoreError, refused
from actstore._norms.asking import growth_question, profile_question, separability_question
from actstore._norms.growth import Growth, ask_growth
from actstore._norms.layers import first_and_last
from actstore._norms.profiles import NormProfile, ask_profile
from actstore._norms.separability import Separability, ask_separability
from actstore._runs.run import Capture, Run
from actstore._transport.base import Backend
from actstore._view import text as _text
from actstore._where import Excluded
from actstore_api.records.capture import CaptureProgress
from actstore_api.records.norm import FitGrowth, GetNormProfile, GetSeparability
from actstore_api.records.terms import Range


class Checkpoints:
    """Several runs as one; each question reads what is committed when it is asked.

    Every answer has layer and checkpoint side by side, or is of one place on the other axis: a mean over training is no
    growth over depth.
    """

    def __init__(self, runs: Sequence[Run], steps: Sequence[float], backend: Backend) -> None:
        self.runs = tuple(runs)
        self.steps = tuple(steps)
        self._backend = backend
        _check_models(self.runs)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(run.name for run in self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        exclude: Excluded = None,
        quantiles: Sequence[float] | None = None,
        by: str = GetNormProfile.by,
        *,
        quantity: str = FitGrowth.quantity,
        histogram: int | Sequence[float] | None = None,
        exact: bool = False,
    ) -> NormProfile:
        """Each run's own profile, as `run.norms` gives it, with columns revision and step in front."""
        asked = profile_question(
            self.names, sites, exclude, quantiles, by, quantity, histogram, exact, steps=self.steps
        )
        return ask_profile(self._backend, asked)

    def fit_growth(
        self,
        axis: str = FitGrowth.axis,
        *,
        site: str = GetSeparability.site,
        layers: tuple[int, int] | None = None,
        exclude: Excluded = None,
        quantity: str = FitGrowth.quantity,
        resamples: int = FitGrowth.resamples,
        seed: int = FitGrowth.seed,
    ) -> list[Growth]:
        """`axis` "layer": over depth, an answer a checkpoint; "checkpoint": over training, an answer a layer.

        `site` is a kind, and `layers` the first and last of its layers, both included (None: all of them).
        `plot_growth` draws all answers on one plot.
        """
        question = growth_question(self.names, axis, site, layers, exclude, quantity, resamples, seed)
        if question.axis == "layer":
            asked = [replace(question, runs=(name,)) for name in self.names]
        else:
            places = self._single_sites(question.site, question.layers)
            asked = [replace(question, site=place, layers=None, steps=self.steps) for place in places]
        return [ask_growth(self._backend, one) for one in asked]

    def separability(
        self,
        site: str = GetSeparability.site,
        layers: tuple[int, int] | None = None,
        *,
        exclude: Excluded = None,
        quantity: str = FitGrowth.quantity,
    ) -> Separability:
        """Whether the norm of a site kind is a factor of the layer times one of the checkpoint."""
        asked = separability_question(self.names, self.steps, site, layers, exclude, quantity)
        return ask_separability(self._backend, asked)

    def _single_sites(self, kind: str, layers: Range | None) -> list[str]:
        """Those between the layers; where there are none, what the answerer will refuse in its own words."""
        stored = {site for site in self.runs[0].norm_sites if site.rpartition(".")[0] == kind}
        numbers = sorted(int(site.rpartition(".")[2]) for site in stored)
        first, last = first_and_last(layers) if layers else (numbers[0], numbers[-1]) if numbers else (0, 0)
        if numbers and (first > last or {first, last} - set(numbers)):
            why = "the first is above the last" if first > last else f"{kind} has no norms at one of them"
            allowed = f"of {', '.join(map(str, numbers))}"
            message = f"layers {first} to {last} are none to follow: {why}"
            raise refused(message, "layers", f"{first} to {last}", allowed, "LAYER_OUT_OF_RANGE")
        return [f"{kind}.{number}" for number in numbers if first <= number <= last] or [kind]

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
        raise refused("revisions are one or more, each once", "revisions", revisions or "none", "names of revisions")
    if steps and len(steps) != len(revisions):
        message = f"{len(steps)} steps for {len(revisions)} revisions"
        raise refused(message, "steps", f"{len(steps)} of them", f"{len(revisions)}, or none")


def run_of_revision(name: str, revision: str) -> str:
    """Of characters that a name may have; the answerer's own default where no name is given."""
    if not _checks.text(name, "name"):
        return ""
    return f"{name}-{re.sub('[^A-Za-z0-9._]+', '-', revision) or 'main'}"


class Captures:
    """Captures of several revisions, which go on by themselves in the workers, whether or not anyone watches."""

    def __init__(self, captures: Sequence[Capture], steps: Sequence[float], backend: Backend) -> None:
        self.captures = tuple(captures)
        self._steps = tuple(steps)
        self._backend = backend

    @property
    def run_names(self) -> tuple[str, ...]:
        return tuple(capture.run_name for capture in self.captures)

    def __repr__(self) -> str:
        return f"Captures of runs {', '.join(self.run_names)}: .wait() for them, .progress() to look, .cancel()"

    def progress(self) -> Iterator[CaptureProgress]:
        """News of one after the other, each to its end; `news.run` says of which."""
        for capture in self.captures:
            yield from capture.progress()

    def wait(self, progress: bool = True, check_saes: bool = True) -> Checkpoints:
        """All of them, finished, as Capture.wait does each. Ctrl-C leaves them running.

        Where one failed, its error comes after the others have ended: they are kept, and the same request again
        finishes what is missing.
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
        """What is committed stays readable."""
        return [capture.cancel() for capture in self.captures]
