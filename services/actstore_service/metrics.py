"""Counts what a service does, in metrics of the catalogue: calls, sweeps, and whether the workers answer."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from actstore_api import metrics as catalogue
from actstore_api.codec import decode
from actstore_api.exporting import Exported
from actstore_api.levels import own_version
from actstore_api.metrics import OTHER, Exporter, Metric
from actstore_api.records.sae import CheckSae, CheckSaeAnswer
from actstore_api.v1 import patching_pb2, sae_pb2
from actstore_service.calls.admission import Admission
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_storage.answers import Store
from actstore_storage.format.specification import FORMAT_VERSION

KERNELS = {number: name.removeprefix("SWEEP_KERNEL_").lower() for name, number in patching_pb2.SweepKernel.items()}
_STREAMS = frozenset(catalogue.STREAMS)
# By reason of a call's error.
_AUTH = {"UNAUTHENTICATED": "unauthenticated", "PERMISSION_DENIED": "denied"}


class Metrics:
    """The metrics of one service process. `workers_up` says whether the workers answer."""

    def __init__(self, workers_up: Callable[[], bool]) -> None:
        self.exported = Exported(Exporter.SERVICE)
        self.exported.set(catalogue.BUILD_INFO, 1, own_version(), str(FORMAT_VERSION))
        self.sweeps = SweepMetrics(self.exported)
        self._answer_scrape = self.exported.wsgi()
        self._at_scrape = [lambda: self.exported.set(catalogue.WORKERS_UP, int(workers_up()))]

    def wsgi(self) -> Callable[..., Any]:
        """Answers a scrape, after looking at all that is only looked at then."""

        def answer(environ: Any, start_response: Any) -> Any:
            for look in self._at_scrape:
                look()
            return self._answer_scrape(environ, start_response)

        return answer

    def look_at(self, admission: Admission, store: Store) -> None:
        """Looks at the places of calls, at quotas, at the cached rows and the kept runs, at each scrape from now on."""
        self._at_scrape += [lambda: self._look_at_admission(admission), lambda: self._look_at_held(store)]

    def look_at_files(self, reloads: Callable[[], Mapping[str, bool]], expires: Callable[[], float | None]) -> None:
        """Looks at the files that are read again, and when the certificate expires, at each scrape from now on."""

        def look() -> None:
            for file, successful in reloads().items():
                self.exported.set(catalogue.RELOADED, int(successful), file)
            if (seconds := expires()) is not None:
                self.exported.set(catalogue.CERTIFICATE_EXPIRES, seconds, "certificate")

        self._at_scrape.append(look)

    def look_at_lines(self, dropped: Callable[[], int]) -> None:
        """Looks at how many log lines were left out, at each scrape from now on."""
        self._at_scrape.append(lambda: self.exported.count_to(catalogue.LOG_LINES_DROPPED, dropped()))

    def sae_checked(self, question: CheckSae, answer: bytes) -> None:
        """Counts a check of an SAE, by whether it found anything that looks wrong, and shows what it explains."""
        found = decode(CheckSaeAnswer, sae_pb2.CheckSaeResponse.FromString(answer))
        self.exported.add(catalogue.SAE_CHECKS, "doubtful" if found.warnings else "as_claimed")
        for row in found.quantities.to_pylist():
            if row["quantity"] == "fvu":
                self._show(catalogue.SAE_FVU, row["value"], question.sae)
                self._show(catalogue.SAE_FVU_CLAIMED, row["claimed"], question.sae)

    def _show(self, metric: Metric, value: float | None, *labels: str) -> None:
        if value is not None:
            self.exported.set(metric, value, *labels)

    @contextmanager
    def counted(self, call: Call) -> Iterator[None]:
        """Counts a call from its start to its end."""
        self.exported.add(catalogue.CALLS_STARTED, call.method)
        self.exported.add(catalogue.CALLS_IN_FLIGHT)
        try:
            yield
        finally:
            self.exported.add(catalogue.CALLS_IN_FLIGHT, by=-1)
            self._ended(call)

    def _ended(self, call: Call) -> None:
        self.exported.add(catalogue.CALLS, call.method, call.code.name)
        self.exported.add(catalogue.SENT_BYTES, call.method, by=call.sent_bytes)
        if (result := _AUTH.get(call.reason, "accepted" if call.principal else None)) is not None:
            self.exported.add(catalogue.AUTH, result)
        if call.reason:
            self.exported.add(catalogue.REFUSED, call.reason, call.kind)
        if call.kind is not CallClass.STANDARD and call.principal:
            self.exported.add(catalogue.PRINCIPAL_CALLS, call.name)
            self.exported.add(catalogue.PRINCIPAL_BYTES, call.name, by=call.received_bytes + call.sent_bytes)
        if call.method in _STREAMS:
            self._stream_ended(call)
        else:
            self.exported.observe(catalogue.UNARY_SECONDS, call.seconds(), call.method)

    def _stream_ended(self, call: Call) -> None:
        self.exported.observe(catalogue.STREAM_SECONDS, call.seconds(), call.method)
        self.exported.add(catalogue.MESSAGES, call.method, by=call.sent_messages)
        if call.first_message_seconds is not None:
            self.exported.observe(catalogue.FIRST_MESSAGE_SECONDS, call.first_message_seconds, call.method)

    def _look_at_admission(self, admission: Admission) -> None:
        self.exported.count_to(catalogue.QUOTA_REFUSALS, admission.bytes.refusals, admission.bytes.name)
        for kind, room in admission.rooms.items():
            self.exported.set(catalogue.CALL_PLACES, room.places, kind)
            self.exported.set(catalogue.CALL_PLACES_TAKEN, room.taken, kind)
            self.exported.set(catalogue.CALLS_WAITING, room.waiting, kind)

    def _look_at_held(self, store: Store) -> None:
        cache = store.row_cache
        self.exported.set(catalogue.HELD_RUNS_BYTES, store.kept.cache.bytes_held)
        self.exported.set(catalogue.HELD_ROWS_BYTES, cache.bytes_held)
        self.exported.count_to(catalogue.HELD_ROWS_REQUESTS, cache.found, "held")
        self.exported.count_to(catalogue.HELD_ROWS_REQUESTS, cache.missed, "read")


class SweepMetrics:
    """Metrics of finished sweeps. A cached answer's audit was counted when it was computed, so it is not
    counted again.
    """

    def __init__(self, exported: Exported) -> None:
        self._exported = exported

    def ended(self, audit: patching_pb2.SweepAudit, cells: int, seconds: float) -> None:
        """Counts a sweep that returned its answer."""
        answer, kernel = "kept" if audit.cached else "computed", KERNELS.get(audit.kernel, OTHER)
        self._exported.add(catalogue.SWEEPS, answer, kernel)
        self._exported.add(catalogue.SWEEP_CELLS, answer, by=cells)
        if not audit.cached:
            self._exported.observe(catalogue.SWEEP_SECONDS, seconds, kernel)
            self._computed(audit)

    def audit_failed(self) -> None:
        """Counts a sweep that its audit aborted."""
        self._exported.add(catalogue.SWEEP_AUDITS_FAILED)

    def _computed(self, audit: patching_pb2.SweepAudit) -> None:
        self._exported.add(catalogue.SWEEP_TOKEN_LAYERS, "computed", by=audit.token_layers)
        self._exported.add(catalogue.SWEEP_TOKEN_LAYERS, "full", by=audit.token_layers_full)
        if audit.audited_cells:
            self._exported.observe(catalogue.SWEEP_ERROR, _share(audit.largest_error, audit.tolerance))
            self._exported.observe(catalogue.SWEEP_NOISE, _share(audit.noise_floor, audit.tolerance))


def _share(value: float, tolerance: float) -> float:
    return value / tolerance if tolerance else math.inf
