"""A run's questions about its stored rows: vectors, tokens, and files for other programs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from actstore import _checks
from actstore._answer import Answer
from actstore._errors import refused
from actstore._runs.activations import Activations
from actstore._transport.base import Backend
from actstore._where import Excluded, Where, chosen_tokens, exclusion
from actstore_api.records import catalog
from actstore_api.records.activation import ROW_COLUMNS, ReadActivations, ReadTokens, RowColumn

# How `Run.export` writes vectors.
ExportLayout = Literal["safetensors", "saelens"]


class RowCalls:
    """Questions to a run about its rows."""

    _backend: Backend
    _description: catalog.Run

    def activations(
        self,
        sites: Iterable[str] | str,
        sequences: range | slice | None = None,
        *,
        positions: range | slice | None = None,
        documents: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
        exclude: Excluded = (),
        columns: Iterable[RowColumn] | RowColumn = ROW_COLUMNS,
    ) -> Activations:
        """Return stored vectors of one site, or of several side by side. All of them are held in memory.

        For training, `actstore_storage.rows.loader` reads a bucket in shuffled batches.

        Args:
            sites: Dense sites, by their short names or TransformerLens's long ones.
            sequences: Numbers of sequences, from 0, as a range or slice. None: all. A range that begins past the last
                sequence is refused; one that goes on past it ends there.
            positions: Positions in a sequence, from 0, as a range or slice. None: all.
            documents: Numbers of documents. None: all. An empty collection is refused.
            tokens: Token ids. None: all. An empty collection is refused.
            exclude: Token classes to leave out (`bos`, `special`, `sink`). Empty: none. None: `bos`.
            columns: Columns beside the vectors: sequence, position, document, token, flags. Empty: none.

        Returns:
            A row for each token.

        Raises:
            NotFound: The run does not store vectors of a site.
        """
        chosen = _checks.names(sites, "sites")
        if not chosen:
            raise refused("name a site to read", "sites", repr(sites), self._description.dense_sites)
        question = ReadActivations(
            self._description.name,
            chosen,
            columns=_checks.several_of(columns, "columns", ROW_COLUMNS),
            where=chosen_tokens(Where(sequences, positions, documents, tokens)),
            exclude=exclusion(exclude),
        )
        table, provenance = self._backend.rows(question)
        return Activations(table=table, sites=chosen, provenance=provenance, excluded=tuple(sorted(question.exclude)))

    def tokens(
        self,
        sequences: range | slice | None = None,
        *,
        positions: range | slice | None = None,
        documents: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
        exclude: Excluded = (),
    ) -> Answer:
        """Return the tokens of the run.

        Args:
            sequences: Numbers of sequences, as in `activations`.
            positions: Positions in a sequence, as in `activations`.
            documents: Numbers of documents, as in `activations`.
            tokens: Token ids. None: all. An empty collection is refused.
            exclude: Token classes to leave out (`bos`, `special`, `sink`). Empty: none. None: `bos`.

        Returns:
            A row for each token: sequence, position, document, token (its id), flags (1 BOS, 2 special, 4 sink), text,
            and the document's source and row.
        """
        where = chosen_tokens(Where(sequences, positions, documents, tokens))
        question = ReadTokens(self._description.name, where, exclusion(exclude))
        table, provenance = self._backend.rows(question)
        return Answer(table=table, provenance=provenance, excluded=tuple(sorted(question.exclude)))

    def export(self, site: str, folder: str | Path, *, layout: ExportLayout = "safetensors") -> int:
        """Write stored vectors of a site as files for other programs. Only on a bucket, not through a service.

        Args:
            site: A dense site.
            folder: Folder to write into; made if it does not exist.
            layout: `safetensors`: tensors `activation` and the tokens' columns, about a gigabyte a file. `saelens`:
                what SAELens's `cached_activations_path` takes, whole contexts only, in float32.

        Returns:
            Number of files, or with `saelens` of contexts.

        Raises:
            BadRequest: The lab is a service.
            NotFound: The run does not store vectors of the site.
        """
        layout = _checks.one_of(layout, "layout", get_args(ExportLayout))
        return self._backend.export(self._description.name, _checks.text(site, "site"), layout, Path(folder))
