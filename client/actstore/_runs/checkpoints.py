"""Runs of several revisions of one model over the same text: growth over depth and over training, kept apart."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from actstore import _checks as _arguments
from actstore._errors import ActstoreError, refused
from actstore._norms.asking import left_out, profile_question
from actstore._norms.profile import AXES, DEFAULT_RESAMPLES, SIZES, Growth, GrowthQuestion, NormProfile
from actstore._norms.separability import Separability, SeparabilityQuestion
from actstore._runs.run import Run
from actstore._transport.base import Backend
from actstore._view import text as _text

if TYPE_CHECKING:
    from actstore._records import CaptureProgress
    from actstore._runs.capture import Capture


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
        exclude: Iterable[str] | str | None = None,
        quantiles: Sequence[float] | None = None,
        by: str = "layer",
        *,
        quantity: str = "l2",
        histogram: int | Sequence[float] | None = None,
        exact: bool = False,
    ) -> NormProfile:
        """Each run's own profile, as `run.norms` gives it, with columns revision and step in front."""
        asked = profile_question(self.names[0], sites, exclude, quantiles, by, quantity, histogram, exact)
        return self._backend.norm_profile(asked.over(self.names[1:], self.steps))

    def fit_growth(
        self,
        axis: str = "layer",
        *,
        site: str = "resid_post",
        layers: tuple[int, int] | None = None,
        exclude: Iterable[str] | str | None = None,
        quantity: str = "l2",
        resamples: int = DEFAULT_RESAMPLES,
        seed: int = 0,
    ) -> list[Growth]:
        """`axis` "layer": over depth, an answer a checkpoint; "checkpoint": over training, an answer a layer.

        `site` is a kind, and `layers` the first and last of its layers, both included (None: all of them).
        `plot_growth` draws all answers on one plot.
        """
        chosen = _arguments.layer_range(layers)
        question = GrowthQuestion(
            self.names,
            **left_out(exclude),
            axis=_arguments.chosen(axis, "axis", AXES),
            site=_arguments.text(site, "site"),
            quantity=_arguments.chosen(quantity, "quantity", SIZES),
            resamples=_arguments.count(resamples, "resamples"),
            seed=_arguments.count(seed, "seed", maximum=2**64 - 1),
        )
        if question.axis == "layer":
            asked = [question.at(runs=(name,), layers=chosen) for name in self.names]
        else:
            places = self._single_sites(question.site, chosen)
            asked = [question.at(site=place, steps=self.steps) for place in places]
        return [self._backend.fit_growth(one) for one in asked]

    def separability(
        self,
        site: str = "resid_post",
        layers: tuple[int, int] | None = None,
        *,
        exclude: Iterable[str] | str | None = None,
        quantity: str = "l2",
    ) -> Separability:
        """Whether the norm of a site kind is a factor of the layer times one of the checkpoint."""
        question = SeparabilityQuestion(
            self.names,
            **left_out(exclude),
            site=_arguments.text(site, "site"),
            layers=_arguments.layer_range(layers),
            steps=self.steps,
            quantity=_arguments.chosen(quantity, "quantity", SIZES),
        )
        return self._backend.separability(question)

    def _single_sites(self, kind: str, layers: tuple[int, int] | None) -> list[str]:
        """Those between the layers; where there are none, what the answerer will refuse in its own words."""
        stored = {site for site in self.runs[0].norm_sites if site.rpartition(".")[0] == kind}
        numbers = sorted(int(site.rpartition(".")[2]) for site in stored)
        first, last = layers or (numbers[0], numbers[-1]) if numbers else (0, 0)
        if numbers and (first > last or {first, last} - set(numbers)):
            why = "the first is above the last" if first > last else f"{kind} has no norms at one of them"
            allowed = f"of {', '.join(map(str, numbers))}"
            message = f"layers {first} to {last} are none to follow: {why}"
            raise refused(message, "layers", f"{first} to {last}", allowed, "LAYER_OUT_OF_RANGE")
        return [f"{kind}.{number}" for number in numbers if first <= number <= last] or [kind]

    def __repr__(self) -> str:
        model = self.runs[0].specification.model
        rows = [{"run": run.name, "revision": run.specification.model_revision or "(main)"} for run in self.runs]
        title = f"{len(self)} checkpoints of {model}: .norms(), .fit_growth(axis), .separability()"
        return f"{title}\n{_text.grid(['run', 'revision'], rows)}"


def _check_models(runs: Sequence[Run]) -> None:
    if not runs:
        raise refused("checkpoints are of one run or more", "runs", "none", "names of runs, or runs")
    first = runs[0]
    for run in runs[1:]:
        expected, found = first.specification.model, run.specification.model
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
    if not _arguments.text(name, "name"):
        return ""
    return f"{name}-{re.sub('[^A-Za-z0-9._]+', '-', revision) or 'main'}"


class Captures:
    """Captures of several revisions, which go on by themselves in the workers, whether or not anyone watches."""

    def __init__(self, captures: Sequence["Capture"], steps: Sequence[float], backend: Backend) -> None:
        self.captures = tuple(captures)
        self._steps = tuple(steps)
        self._backend = backend

    @property
    def run_names(self) -> tuple[str, ...]:
        return tuple(capture.run_name for capture in self.captures)

    def __repr__(self) -> str:
        return f"Captures of runs {', '.join(self.run_names)}: .wait() for them, .progress() to look, .cancel()"

    def progress(self) -> Iterator["CaptureProgress"]:
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

    def cancel(self) -> list["CaptureProgress"]:
        """What is committed stays readable."""
        return [capture.cancel() for capture in self.captures]
