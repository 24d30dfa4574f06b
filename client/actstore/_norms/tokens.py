"""Norms of single tokens, as `run.token_norms` answers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actstore import _checks
from actstore._norms import heat_maps
from actstore._norms.answer import TITLES, NormAnswer, origin
from actstore._norms.profiles import drawn_kind
from actstore._transport.base import Backend
from actstore_api.records.norm import GetNormProfile, GetNormProfileAnswer, NormQuantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOKEN_COLUMNS = ("sequence", "position", "document", "token", "text", "token_class")
SHOWN_SITES = 8


@dataclass(frozen=True, repr=False)
class TokenNorms(NormAnswer):
    """Norms of single tokens: a row for each token that counts, and a column for each site.

    Columns: sequence, position, document, token (its id), text, token_class (text, bos, special or sink), and under
    each site's name the quantity there (float32; infinite or NaN if the activation was). Rows are in order of
    sequence, then position. Sequences that were asked for and have no row are not committed, not in the run, or have
    no token that counts.

    Attributes:
        run: Name of the run.
        quantity: What was measured of each token, such as `l2`.
    """

    run: str
    quantity: NormQuantity

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, by kind, then layer."""
        return tuple(name for name in self.table.column_names if name not in TOKEN_COLUMNS)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Site kinds, such as `resid_post`."""
        return tuple(dict.fromkeys(site.rpartition(".")[0] for site in self.sites))

    @property
    def sequences(self) -> tuple[int, ...]:
        """Numbers of the sequences that have rows."""
        return tuple(dict.fromkeys(self.table["sequence"].to_pylist()))

    def to_numpy(self, kind: str | None = None) -> npt.NDArray[np.floating]:
        """Return the quantity as an array.

        Args:
            kind: A site kind. None: all sites.

        Returns:
            float32 [tokens, sites], in the order of the rows and of `sites`.
        """
        chosen = self.sites if kind is None else self.sites_of(kind)
        return np.stack([self.table[site].to_numpy() for site in chosen], axis=1)

    def sites_of(self, kind: str) -> tuple[str, ...]:
        """Return the sites of a kind, in order of layer.

        Args:
            kind: One of `kinds`.
        """
        kind = _checks.one_of(kind, "kind", self.kinds)
        return tuple(site for site in self.sites if site.rpartition(".")[0] == kind)

    def plot(self, ax: "Axes | None" = None, *, site: str | None = None) -> "Axes":
        """Draw one site kind: a heat map with a column for each token and a row for each layer.

        The scale is logarithmic if all values are above 0. One layer alone is a line over tokens. Sequences stand side
        by side.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            site: The site kind to draw. None: `resid_post`, or else the first one.

        Returns:
            The axes.
        """
        kind = drawn_kind(self.kinds, site)
        sites, values = self.sites_of(kind), self.to_numpy(kind).astype(np.float64)
        layers = [name.rpartition(".")[2] for name in sites]
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


def ask_token_norms(backend: Backend, question: GetNormProfile) -> TokenNorms:
    """Asks for norms of single tokens."""
    found: GetNormProfileAnswer = backend.ask(question)
    return TokenNorms(table=found.profile, run=question.runs[0], quantity=question.quantity, **origin(found))
