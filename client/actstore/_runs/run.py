"""One run: what it stores, and every question about it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from actstore import _checks as _arguments
from actstore._answer import Answer
from actstore._errors import refused
from actstore._features.feature import Feature
from actstore._features.features import SaeFeatures
from actstore._norms.asking import profile_question
from actstore._norms.profile import TOKEN, NormProfile
from actstore._norms.tokens import TokenNorms, token_norms
from actstore._questions import SaeOfRun, Where
from actstore._records import CaptureSpecification, Provenance, RowQuery, RunDescription, SaeAttachment
from actstore._runs.activations import ROW_COLUMNS, Activations
from actstore._transport.base import Backend
from actstore._view import html as _html
from actstore._view import text as _text

if TYPE_CHECKING:
    from actstore._runs.capture import Capture


class Run:
    """As it was when it was opened; each question reads what is committed when it is asked."""

    def __init__(self, description: RunDescription, backend: Backend) -> None:
        self._description = description
        self._backend = backend

    @property
    def name(self) -> str:
        return self._description.name

    @property
    def specification(self) -> CaptureSpecification:
        return self._description.specification

    @property
    def provenance(self) -> Provenance:
        return self._description.provenance

    @property
    def complete(self) -> bool:
        """Whether every shard was committed when the run was opened."""
        return self._description.complete

    @property
    def tokens_committed(self) -> int:
        return self._description.tokens_committed

    @property
    def tokens_total(self) -> int:
        return self._description.tokens_total

    @property
    def layer_count(self) -> int:
        return self._description.layer_count

    @property
    def d_model(self) -> int:
        return self._description.d_model

    @property
    def dense_sites(self) -> tuple[str, ...]:
        return self._description.dense_sites

    @property
    def norm_sites(self) -> tuple[str, ...]:
        return self._description.norm_sites

    @property
    def saes(self) -> tuple[SaeAttachment, ...]:
        return self._description.saes

    @overload
    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        exclude: Iterable[str] | str | None = None,
        *,
        by: Literal["token"],
        sequences: range | slice,
        quantity: str = "l2",
    ) -> TokenNorms: ...

    @overload
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
        sequences: range | slice | None = None,
    ) -> NormProfile: ...

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
        sequences: range | slice | None = None,
    ) -> NormProfile:
        """Norms over tokens at each site: site kinds (`resid_post`), single sites (`resid_post.3`), or all.

        `exclude` names what does not count: token classes (bos, special, sink) and position_0, each sequence's first
        token; None is the default, BOS, and () leaves nothing out. `quantiles` None gives five of them, and () none:
        then nothing but the run's statistics is read. `by` layer, site (all layers of a kind together), token_class,
        position or document says what rows are of. `by` token takes `sequences`, as range(4), and gives a TokenNorms:
        their tokens one by one, with a column a site.

        `quantity`: l2; rms and standard_deviation over d_model; centred_l2; cosine_to_stream (a sublayer's write to
        what it is added to), cosine_to_next (of resid_pre to the next layer's); share_of_stream and relative_increase
        (a write's norm, and what it adds to the stream's, over the stream's). `histogram`: of each site, in so many
        bins or between these edges. `exact`: quantiles and histograms are of each token's own norm, and not of sketches
        with their `rank_error`; that reads as much as there are tokens.
        """
        asked = profile_question(self.name, sites, exclude, quantiles, by, quantity, histogram, exact, sequences)
        found = self._backend.norm_profile(asked)
        return token_norms(found) if asked.by == TOKEN else found

    def features(self, sae: str) -> SaeFeatures:
        """All features of an SAE whose activations this run stores: to search, to compare, to check."""
        return SaeFeatures(self._source(sae), self._backend)

    def feature(self, sae: str, index: int) -> Feature:
        """Refuses at once an SAE that the run does not store, or an index past its width."""
        return self.features(sae)[index]

    def encode(self, saes: str | Iterable[str], *, name: str | None = None) -> "Capture":
        """Run SAEs over this run's stored rows, without its model; `.wait()` gives the new run.

        It has all that this one has, of the same tokens and not copied, and these SAEs' features as well: the same, bit
        for bit, as if they had been captured with it, where rows are stored in the model's own dtype. This run must be
        complete and store the sites that the SAEs read, at all positions. While the new run is there this one cannot
        be removed.
        """
        from actstore._runs.capture import Capture  # which gives runs

        chosen = _arguments.names(saes, "saes")
        if not chosen:
            raise refused("name an SAE to encode with", "saes", repr(saes), "`lab.saes()` lists those known")
        asked = CaptureSpecification(
            model="", dataset="", run=_arguments.text(name or "", "name"), saes=chosen, rows_of=self.name
        )
        return Capture(self._backend.start_capture(asked), self._backend)

    def _source(self, sae: str) -> SaeOfRun:
        widths = {attachment.name: attachment.d_sae for attachment in self.saes}
        if sae not in widths:
            message = f"run {self.name!r} stores no features of an SAE {sae!r}"
            raise refused(message, "sae", sae, sorted(widths) or "none: capture with saes=[...]", "SAE_NOT_FOUND")
        asked = self.specification
        return SaeOfRun(self.name, sae, widths[sae], asked.model, asked.model_revision, asked.bos)

    def activations(
        self,
        site: str | Sequence[str],
        sequences: range | slice | None = None,
        *,
        positions: range | slice | None = None,
        documents: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
        exclude: Iterable[str] | str = (),
        columns: Iterable[str] | str = ROW_COLUMNS,
    ) -> Activations:
        """Stored vectors of one dense site, or of several side by side; all of it lands in memory.

        Rows are those of the sequences, positions, documents and token ids given (None: all), without the token classes
        in `exclude` (bos, special, sink). A range that begins past the last sequence is refused; one that goes on past
        it ends there. `columns` are those that come beside the vectors. `actstore_storage.rows.loader`
        reads a bucket for training, shuffled and without holding it in memory.
        """
        sites = _arguments.names(site, "site")
        if not sites:
            raise refused("name a site to read", "site", repr(site), self.dense_sites)
        beside = _arguments.choices(columns, "columns", ROW_COLUMNS)
        query = _row_query(sequences, positions, documents, tokens, exclude, sites=sites, columns=beside)
        table, provenance = self._backend.read_activations(self.name, query)
        return Activations(table=table, sites=sites, provenance=provenance, excluded=tuple(sorted(query.exclude)))

    def tokens(
        self,
        sequences: range | slice | None = None,
        *,
        positions: range | slice | None = None,
        documents: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
        exclude: Iterable[str] | str = (),
    ) -> Answer:
        """Columns sequence, position, document, token, flags (1 BOS, 2 special, 4 sink) and text; then source and row
        of the document, as of examples. Rows as above.
        """
        query = _row_query(sequences, positions, documents, tokens, exclude)
        table, provenance = self._backend.read_tokens(self.name, query)
        return Answer(table=table, provenance=provenance, excluded=tuple(sorted(query.exclude)))

    def export(self, site: str, folder: str | Path, *, layout: str = "safetensors") -> int:
        """Stored vectors of a site as files for other programs; how many files, or contexts. On a bucket only.

        `layout` safetensors: tensors `activation` and the tokens' columns, about a gigabyte a file. `saelens`: what its
        `cached_activations_path` takes, whole contexts only, in float32.
        """
        layout = _arguments.choices(layout, "layout", ("safetensors", "saelens"))[0]
        return self._backend.export(self.name, _arguments.text(site, "site"), layout, Path(folder))

    def _rows(self) -> list[dict[str, object]]:
        asked = self.specification
        facts = {
            "model": asked.model + (f"@{asked.model_revision}" if asked.model_revision else ""),
            "dataset": asked.dataset,
            "tokens": f"{self.tokens_committed:,} of {self.tokens_total:,}",
            "shards": f"{self.provenance.shards_committed} of {self.provenance.shards_total}",
            "layers x d_model": f"{self.layer_count} x {self.d_model}",
            "dense sites": ", ".join(self.dense_sites) or "none",
            "norms of": f"{len(self.norm_sites)} sites",
            **({"rows of": f"run {asked.rows_of}"} if asked.rows_of else {}),
            "SAEs": ", ".join(f"{sae.name} ({sae.d_sae:,} features of {sae.site})" for sae in self.saes) or "none",
        }
        return [{"": name, self.name: fact} for name, fact in facts.items()]

    def __repr__(self) -> str:
        state = "complete" if self.complete else "incomplete"
        return f"Run {self.name} ({state})\n" + _text.grid(["", self.name], self._rows())

    def _repr_html_(self) -> str:
        return _html.grid(["", self.name], self._rows()) + _html.note(self.provenance.summary)


def _row_query(
    sequences: range | slice | None,
    positions: range | slice | None,
    documents: Iterable[int] | None,
    tokens: Iterable[int] | None,
    exclude: Iterable[str] | str,
    **of_activations: Any,
) -> RowQuery:
    where = Where(sequences, positions, documents, tokens)
    return replace(where.query(), exclude=_arguments.exclusion(exclude), **of_activations)
