"""What answers about norms have in common."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from actstore import _checks
from actstore._answer import Answer
from actstore._view.plot import titled
from actstore._where import Excluded
from actstore_api.records.norm import NormQuantity
from actstore_api.records.terms import DEFAULT_EXCLUSION, TokenClass

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITION_0 = "position_0"
TOKEN = "token"  # noqa: S105  a token of text
# Of which growth is told.
SIZES: tuple[NormQuantity, ...] = ("l2", "rms", "standard_deviation", "centred_l2")


@dataclass(frozen=True, repr=False)
class NormAnswer(Answer):
    """Of one run or several; `warnings` are sentences on what these differ by beside training, such as their dtype, and
    on sketches that are gone from the bucket, so that every token's norm had to be read.
    """

    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "warnings": list(self.warnings)}

    def _titled(self, ax: "Axes", what: str) -> "Axes":
        """`ax` under its title, which says what is left out, and with the warnings."""
        return titled(ax, f"{what} ({self.left_out})", self.warnings)

    def _notes(self) -> list[str]:
        return [*(f"warning: {text}" for text in self.warnings), *super()._notes()]


def origin(found: Any) -> dict[str, Any]:
    """What any answer about norms says of where its numbers come from."""
    position_0 = {POSITION_0} if found.excluded_position_0 else set()
    return {
        "excluded": tuple(sorted({*found.excluded, *position_0})),
        "warnings": found.warnings,
        "provenance": found.provenance,
    }


def left_out(exclude: Excluded) -> dict[str, Any]:
    """A question's fields `exclude` and `exclude_position_0`. None is the default, BOS."""
    if exclude is None:
        return {"exclude": DEFAULT_EXCLUSION, "exclude_position_0": False}
    found = set(_checks.several_of(exclude, "exclude", (*get_args(TokenClass), POSITION_0)))
    return {"exclude": frozenset(found - {POSITION_0}), "exclude_position_0": POSITION_0 in found}
