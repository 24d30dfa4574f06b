"""Questions of a lab about norms: of several runs, and of weights."""

from collections.abc import Iterable, Sequence

from actstore import _checks as _arguments
from actstore._errors import refused
from actstore._model_questions import WeightsQuestion
from actstore._norms.asking import left_out
from actstore._norms.profile import AXES, DEFAULT_RESAMPLES, SIZES, Growth, GrowthQuestion
from actstore._norms.weights import LEFT_OUT, WeightNorms
from actstore._runs.checkpoints import Checkpoints
from actstore._runs.run import Run
from actstore._transport.base import Backend


class NormAsking:
    """Of a Lab."""

    _backend: Backend

    def fit_growth(
        self,
        runs: Run | str | Iterable[Run | str],
        axis: str = "layer",
        *,
        site: str | None = None,
        layers: tuple[int, int] | None = None,
        exclude: Iterable[str] | str | None = None,
        steps: Sequence[float] | None = None,
        resamples: int = DEFAULT_RESAMPLES,
        seed: int = 0,
        quantity: str = "l2",
    ) -> Growth:
        """How fast the mean L2 norm grows: over the layers of one run, or over training at one site of several runs.

        `axis` "layer" takes one run, a site kind (None: resid_post) and the first and last layer, both included (None:
        every layer). `axis` "checkpoint" takes at least three runs of one model over the same tokens, a single site
        (None: resid_post of the last layer), and where each stands in training (`steps`; None: the numbers at the ends
        of the revisions' names). The two never mix: growth over depth and growth over training are different things.

        `exclude` as in `run.norms`. `quantity` is a measure of size: l2; rms, at the same rate, which compares models
        of several widths; standard_deviation and centred_l2, without the mean over d_model.
        """
        _arguments.choices(axis, "axis", AXES)
        names = (runs,) if isinstance(runs, Run | str) else tuple(runs)
        asked = tuple(run.name if isinstance(run, Run) else _arguments.text(run, "runs") for run in names)
        _check(axis, asked, layers, steps)
        default = "resid_post" if axis == "layer" else ""
        question = GrowthQuestion(
            asked,
            **left_out(exclude),
            axis=axis,
            site=default if site is None else _arguments.text(site, "site"),
            layers=_arguments.layer_range(layers),
            steps=tuple(_arguments.number(step, "steps") for step in steps or ()),
            resamples=_arguments.count(resamples, "resamples"),
            seed=_arguments.count(seed, "seed", maximum=2**64 - 1),
            quantity=_arguments.chosen(quantity, "quantity", SIZES),
        )
        return self._backend.fit_growth(question)

    def checkpoints(self, runs: Iterable[Run | str], steps: Sequence[float] | None = None) -> Checkpoints:
        """Runs of several revisions of one model over the same text, as `capture_revisions` makes them.

        `steps` are their places in training; None: the numbers at the ends of the revisions' names.
        """
        named = (runs,) if isinstance(runs, Run | str) else tuple(runs)
        opened = [
            run if isinstance(run, Run) else Run(self._backend.get_run(_arguments.text(run, "runs")), self._backend)
            for run in named
        ]
        return Checkpoints(opened, [_arguments.number(step, "steps") for step in steps or ()], self._backend)

    def weights(
        self,
        model: str,
        *,
        layers: Iterable[int] | None = None,
        text: str | Sequence[int] | None = None,
        samples: int = 4096,
        seed: int = 0,
        revision: str = "",
        bos: bool | None = None,
        run: Run | str | None = None,
        run_tokens: int = 8192,
    ) -> WeightNorms:
        """Norms of every weight matrix by layer and head, and what attention and MLP write on random input. Live.

        `samples` random inputs, drawn by `seed`, go through each layer; with a `text`, its tokens are put beside them,
        and with a `run` of these weights about `run_tokens` of the tokens that it stored, which tells how many MLP
        units are active on real input. `layers` None: all of them.
        """
        question = WeightsQuestion(
            _arguments.words(model, "model"),
            _arguments.text(revision, "revision"),
            _arguments.tristate(bos, "bos"),
            layers=tuple(_arguments.count(layer, "layers") for layer in layers or ()),
            samples=_arguments.count(samples, "samples"),
            seed=_arguments.count(seed, "seed", maximum=2**63 - 1),
            text="" if text is None else _arguments.prompt(text, "text"),
            run=run.name if isinstance(run, Run) else _arguments.text(run or "", "run"),
            run_tokens=_arguments.count(run_tokens, "run_tokens"),
        )
        found = self._backend.ask(question)
        return WeightNorms(
            table=found.table,
            sublayers=found.tables["sublayers"],
            provenance=found.provenance,
            excluded=LEFT_OUT if question.text or question.run else (),
        )


def _check(axis: str, runs: tuple[str, ...], layers: object, steps: object) -> None:
    if not runs or (axis == "layer" and len(runs) > 1):
        allowed = "one run" if axis == "layer" else "three runs or more"
        raise refused(f"growth by {axis} is not of {len(runs)} runs", "runs", f"{len(runs)} runs", allowed)
    if axis == "checkpoint" and layers is not None:
        raise refused(
            "growth over checkpoints is of one site", "layers", repr(layers), "None, and a site: resid_post.3"
        )
    if axis == "layer" and steps is not None:
        raise refused("the steps of growth over layers are the layers", "steps", repr(steps), "None")
