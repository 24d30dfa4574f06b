"""Answers any question about captures."""

import asyncio
from typing import Any

from actstore_api.records.capture import (
    CancelCapture,
    CancelCaptureAnswer,
    EstimateCapture,
    EstimateCaptureAnswer,
    GetCaptureTotals,
    ListSources,
    ListSourcesAnswer,
    StartCapture,
    StartCaptureAnswer,
)
from actstore_worker.caller import Caller
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces


class CaptureAnswers:
    """Answers questions to the coordinator, and about what captures can use."""

    def __init__(self, coordinator: Coordinator, catalog: ModelCatalog, places: DatasetPlaces) -> None:
        self._coordinator = coordinator
        self._catalog, self._places = catalog, places

    async def answer(self, question: Any, caller: Caller) -> Any:
        """Answer a caller's question about captures, except the one whose answer is a stream.

        Errors: any error of the question.
        """
        captures = self._coordinator
        match question:
            case StartCapture():
                return StartCaptureAnswer(await captures.submit(question.specification, caller))
            case EstimateCapture():
                return EstimateCaptureAnswer(await captures.estimate(question.specification, caller))
            case ListSources():
                return await asyncio.to_thread(self._sources)
            case CancelCapture():
                return CancelCaptureAnswer(await captures.cancel(question.run))
            case GetCaptureTotals():
                return await captures.totals()
        raise TypeError(f"{type(question).__name__} is not a question about captures")

    def _sources(self) -> ListSourcesAnswer:
        # Imported only now: it looks into models as their libraries do, which take seconds to import.
        from actstore_worker.catalog.listing import find_sources

        return find_sources(self._catalog, self._places)
