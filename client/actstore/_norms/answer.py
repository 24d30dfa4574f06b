"""What answers about norms have in common."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from actstore import _checks
from actstore._answer import Answer
from actstore._view.plot import titled
from actstore_api.records.terms import DEFAULT_EXCLUSION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What norms can leave out: classes of tokens, and each sequence's first token, of whatever class.
NormExclusion = Literal["bos", "special", "sink", "position_0"]
ExcludedFromNorms = Iterable[NormExclusion] | NormExclusion | None
# Measures of size, of which growth and separability are told.
NormSize = Literal["l2", "rms", "standard_deviation", "centred_l2"]
POSITION_0 = "position_0"
SIZES: tuple[NormSize, ...] = get_args(NormSize)
TITLES = {"l2": "L2 norms", "rms": "RMS", "centred_l2": "centered L2 norms"}


@dataclass(frozen=True, repr=False)
class NormAnswer(Answer):
    """An answer about norms of one run or several.

    Attributes:
        warnings: Sentences on what may make the numbers wrong: runs that differ in more than their training, such as
            their dtype, and stored sketches that are gone, so that every token's norm had to be read.
    """

    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**super().to_dict(), "warnings": list(self.warnings)}

    def _titled(self, ax: "Axes", what: str) -> "Axes":
        """`ax` under its title, which says what is left out, and with the warnings."""
        return titled(ax, f"{what} ({self._left_out})", self.warnings)

    def _notes(self) -> list[str]:
        return [*(f"warning: {text}" for text in self.warnings), *super()._notes()]


def origin(found: Any) -> dict[str, Any]:
    """The note of an answer about norms on where its numbers come from."""
    position_0 = {POSITION_0} if found.excluded_position_0 else set()
    return {
        "excluded": tuple(sorted({*found.excluded, *position_0})),
        "warnings": found.warnings,
        "provenance": found.provenance,
    }


def left_out(exclude: ExcludedFromNorms) -> dict[str, Any]:
    """A question's fields `exclude` and `exclude_position_0`. None is the default, BOS."""
    if exclude is None:
        return {"exclude": DEFAULT_EXCLUSION, "exclude_position_0": False}
    found = set(_checks.several_of(exclude, "exclude", get_args(NormExclusion)))
    return {"exclude": frozenset(found - {POSITION_0}), "exclude_position_0": POSITION_0 in found}
