"""Norms of single tokens, as `run.norms(by="token")` answers."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actstore import _checks
from actstore._norms import heat_maps
from actstore._norms.profiles import TITLES, NormProfile, drawn_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOKEN_COLUMNS = ("sequence", "position", "document", "token", "text", "token_class")
SHOWN_SITES = 8


@dataclass(frozen=True, repr=False)
class TokenNorms(NormProfile):
    """A row a token that counts, in order of (sequence, position): sequence, position, document, token (its id), text,
    token_class (text, bos, special or sink), and under each site's name the quantity there, float32. What was infinite
    or no number is so here.

    Sequences that were asked for and are not there are not committed, not in the run, or have no token that counts.
    """

    @property
    def sites(self) -> tuple[str, ...]:
        """By kind, then layer."""
        return tuple(name for name in self.table.column_names if name not in TOKEN_COLUMNS)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site.rpartition(".")[0] for site in self.sites))

    @property
    def sequences(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.table["sequence"].to_pylist()))

    def to_numpy(self, kind: str | None = None) -> npt.NDArray[np.floating]:
        """[tokens, sites], of one kind or (None) of all."""
        chosen = self.sites if kind is None else self.sites_of(kind)
        return np.stack([self.table[site].to_numpy() for site in chosen], axis=1)

    def sites_of(self, kind: str) -> tuple[str, ...]:
        """By layer."""
        kind = _checks.one_of(kind, "site", self.kinds)
        return tuple(site for site in self.sites if site.rpartition(".")[0] == kind)

    def plot(self, ax: "Axes | None" = None, fit: str | None = "resid_post") -> "Axes":
        """A heat map with a column a token and a row a layer, of the kind that `fit` names, on a log scale where all is
        above 0; of a single layer a line over tokens. Sequences stand side by side.
        """
        kind = drawn_kind(self.kinds, fit)
        sites, values = self.sites_of(kind), self.to_numpy(kind).astype(np.float64)
        layers = [site.rpartition(".")[2] for site in sites]
        ax = heat_maps.by_token(ax, values, layers, self.quantity, self.table["sequence"].to_numpy())
        heat_maps.name_tokens(ax, self.table)
        return self._titled(ax, f"{self.quantity} of {sites[0] if len(sites) == 1 else kind}")

    def _title(self) -> str:
        what = TITLES.get(self.quantity, self.quantity)
        return f"{what} of {len(self):,} tokens of {len(self.sequences):,} sequences at {len(self.sites)} sites"

    def _shown_columns(self) -> list[str]:
        return [*TOKEN_COLUMNS, *self.sites[:SHOWN_SITES]]

    def _notes(self) -> list[str]:
        hidden = len(self.sites) - SHOWN_SITES
        return [*([f"… {hidden:,} more sites"] if hidden > 0 else []), *super()._notes()]


def token_norms(profile: NormProfile) -> TokenNorms:
    """Makes the norms of single tokens of an answer by token."""
    own: dict[str, Any] = {item.name: getattr(profile, item.name) for item in fields(profile)}
    return TokenNorms(**own)
