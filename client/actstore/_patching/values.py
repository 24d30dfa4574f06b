"""Arguments of a sweep that hold several choices: the patched SAE, and the receivers of path patching."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.patching import PathMlps, RunSweep, SaeError, Screen


@dataclass(frozen=True)
class PatchedSae:
    """An SAE whose features are patched, and what becomes of the part of the activation that it does not explain.

    Args:
        sae: The SAE's name. It is of this model; features are patched at its site.
        features: Indices of features, at least one. None: at each place all that are active there in either run.
        sae_error: What becomes of the SAE's error, the activation less the SAE's reconstruction of it. "kept": the base
            run's error stays, so that only the features change. "dropped": there is none, and the site becomes the
            reconstruction. "patched": the source run's error takes its place, together with the features.
    """

    sae: str
    features: Iterable[int] | None = None
    sae_error: SaeError = RunSweep.sae_error

    def __post_init__(self) -> None:
        _checks.name(self.sae, "sae")
        if self.features is not None:
            object.__setattr__(self, "features", _checks.some_numbers(self.features, "features"))
        _checks.one_of(self.sae_error, "sae_error", get_args(SaeError))


@dataclass(frozen=True)
class Receivers:
    """Where paths end: only these take what the patched cells send, and all attention on the way stays as it was.

    Args:
        receivers: What heads read as queries, keys or values ("q.9.6", "k.9.6", "v.9.6"; "k.9" is all heads of layer
            9), what an MLP reads ("mlp_in.3"), or "logits" alone. One string, or several; at most 128.
        path_mlps: What MLPs between a sender and the receivers do. "recomputed": what they make of what was sent, so
            that a path may go through them. "frozen": what they do in the base run, so that only direct paths are left.
    """

    receivers: Iterable[str] | str
    path_mlps: PathMlps = RunSweep.path_mlps

    def __post_init__(self) -> None:
        names = _checks.some_names(self.receivers, "receivers")
        if not names:
            raise refused("receivers are not named", "receivers", repr(self.receivers), "q.9.6, k.9, mlp_in.3, logits")
        object.__setattr__(self, "receivers", names)
        _checks.one_of(self.path_mlps, "path_mlps", get_args(PathMlps))


def patched_sae(given: PatchedSae | str | None) -> PatchedSae | None:
    """Checks an SAE that is given as it is, or by its name."""
    return given if given is None or isinstance(given, PatchedSae) else PatchedSae(given)


def receivers_of(given: Receivers | Iterable[str] | str | None) -> Receivers | None:
    """Checks receivers that are given as they are, or by their names."""
    return given if given is None or isinstance(given, Receivers) else Receivers(given)


def screen_of(given: Screen | int | None) -> Screen | None:
    """Checks a screen that is given as it is, or as the number of cells that are computed."""
    if given is None:
        return None
    screen = given if isinstance(given, Screen) else Screen(_checks.count(given, "screen"))
    return Screen(
        _checks.count(screen.exact_cells, "exact_cells"),
        _checks.switch(screen.qk_correction, "qk_correction"),
        _checks.switch(screen.grad_drop, "grad_drop"),
    )
