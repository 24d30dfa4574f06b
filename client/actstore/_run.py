"""One run: what it stores, and every question about it."""

from collections.abc import Iterable, Sequence

from actstore import _arguments, _html, _text
from actstore._activations import TOKEN_SCHEMA, Activations, activation_schema, assembled
from actstore._backend import Backend
from actstore._errors import refused
from actstore._features import Feature
from actstore._norms import NormProfile
from actstore._records import CaptureSpecification, Provenance, RunDescription, SaeAttachment
from actstore._tables import Answer


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

    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        exclude: Iterable[str] | str | None = None,
        quantiles: Sequence[float] | None = None,
        by: str = "layer",
    ) -> NormProfile:
        """L2 norms over tokens at each site: site kinds (`resid_post`), single sites (`resid_post.3`), or all.

        `exclude` names token classes that do not count; None is the default, BOS, and () leaves nothing out.
        """
        _arguments.choices(by, "by", ("layer",))
        sites = _arguments.names(sites, "sites")
        classes = _arguments.exclusion(exclude)
        return self._backend.norm_profile(self.name, sites, classes, _arguments.fractions(quantiles, "quantiles"))

    def feature(self, sae: str, index: int) -> Feature:
        """Refuses at once an SAE that the run does not store, or an index past its width."""
        widths = {attachment.name: attachment.d_sae for attachment in self.saes}
        if sae not in widths:
            message = f"run {self.name!r} stores no features of an SAE {sae!r}"
            raise refused(message, "sae", sae, sorted(widths) or "none: capture with saes=[...]", "SAE_NOT_FOUND")
        index = _arguments.count(index, "feature", maximum=widths[sae] - 1, reason="FEATURE_OUT_OF_RANGE")
        return Feature(self.name, sae, index, self._backend)

    def activations(self, site: str, sequences: range | slice | None = None) -> Activations:
        """Stored vectors of a dense site, of all sequences or those of a range or slice; all of it lands in memory."""
        first, count = _arguments.sequence_range(sequences)
        site = _arguments.text(site, "site")
        batches, provenance = self._backend.read_activations(self.name, site, first, count)
        schema = activation_schema(self.specification.dtype, self.d_model)
        return Activations(table=assembled(batches, schema), site=site, provenance=provenance)

    def tokens(self, sequences: range | slice | None = None) -> Answer:
        """Columns sequence, position, document, token, flags (1 BOS, 2 special) and text."""
        batches, provenance = self._backend.read_tokens(self.name, *_arguments.sequence_range(sequences))
        return Answer(table=assembled(batches, TOKEN_SCHEMA), provenance=provenance)

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
            "SAEs": ", ".join(f"{sae.name} ({sae.d_sae:,} features of {sae.site})" for sae in self.saes) or "none",
        }
        return [{"": name, self.name: fact} for name, fact in facts.items()]

    def __repr__(self) -> str:
        state = "complete" if self.complete else "incomplete"
        return f"Run {self.name} ({state})\n" + _text.grid(["", self.name], self._rows())

    def _repr_html_(self) -> str:
        return _html.grid(["", self.name], self._rows()) + _html.note(self.provenance.summary)
