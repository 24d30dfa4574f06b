"""The origins of the documents of a run."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from actstore_storage.runs.document_sources import DocumentSources
from actstore_worker.datasets.documents import Document


class NotedSources:
    """Collects the origins of documents as they are read. There may be many millions, so these are columns instead of
    objects.
    """

    def __init__(self) -> None:
        self._numbers, self._rows, self._sources = array("q"), array("q"), list[str]()

    def passing(self, found: Iterable[Document]) -> Iterator[Document]:
        for document in found:
            self._numbers.append(document.number)
            self._rows.append(document.row)
            self._sources.append(document.source)
            yield document

    def of(self, documents: NDArray[np.int64]) -> DocumentSources:
        noted = DocumentSources(
            np.array(self._numbers, np.int64), np.array(self._sources, np.object_), np.array(self._rows, np.int64)
        )
        return noted.take(documents)
