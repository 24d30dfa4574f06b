"""The catalogue of all metrics that a service or the workers export, as plain data.

`exporting.py` makes Prometheus's objects from it; docs/reference/metrics.md, dashboards and alerts are written from it.
A metric that is not in it cannot be exported. Its labels have few values: the catalogue has their list, or their bound.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import product

from actstore_api.reasons import REASONS
from actstore_api.verbs import VERBS

# The value of a label for all that is not in its list, or beyond its bound.
OTHER = "other"
# Configured principals that have counts of their own, and SAEs whose last check is exported.
PRINCIPALS_MAX, SAES_MAX = 50, 32
# From a health check to a feature page over a large run.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# From a page of an index to a shard's object, and to the end of all retries.
STORE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LOAD_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
WORK_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600)
SHARES_OF_TOLERANCE = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


class MetricType(Enum):
    """How a metric behaves in time."""

    COUNTER = "counter"
    """It only grows, until its process starts again. Its name ends in `_total`."""
    GAUGE = "gauge"
    """It rises and falls."""
    HISTOGRAM = "histogram"
    """It counts observations below the bounds of its buckets, and adds them up."""


class Exporter(Enum):
    """Which process exports a metric."""

    SERVICE = "service"
    """Each service process, for what it did itself."""
    WORKERS = "workers"
    """One process on the head of the Ray cluster, for all workers together."""
    CANARY = "canary"
    """`actstore canary`, in a file for Prometheus's node exporter."""
    CHECK = "check"
    """`actstore check`, in a file for Prometheus's node exporter."""


@dataclass(frozen=True)
class Label:
    """A label and what bounds its series.

    Args:
        name: Its name.
        values: All its values; others count as `other`. Empty: not known beforehand.
        bound: How many values it has at most, if they are not known beforehand; further ones count as `other`.
    """

    name: str
    values: tuple[str, ...] = ()
    bound: int = 0

    @property
    def most(self) -> int:
        """The largest number of its values, `other` included."""
        return (len(self.values) or self.bound) + 1


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: Its name, as it is queried; a histogram's has `_bucket`, `_sum` and `_count` at its end then.
        type: Counter, gauge or histogram.
        unit: What its value counts or measures: seconds, bytes, calls. `1`: a ratio, or a state that is 0 or 1.
        help: What it says, for operators.
        labels: Its labels, in order.
        exporters: The processes that export it.
        buckets: A histogram's bounds.
    """

    name: str
    type: MetricType
    unit: str
    help: str
    labels: tuple[Label, ...] = ()
    exporters: tuple[Exporter, ...] = (Exporter.SERVICE,)
    buckets: tuple[float, ...] = ()

    @property
    def series_max(self) -> int:
        """The largest number of its series in one process, a histogram's buckets not counted."""
        found = 1
        for label in self.labels:
            found *= label.most
        return found

    def first_series(self) -> Iterable[tuple[str, ...]]:
        """The label values that are known beforehand. A counter has them from its start: `rate` misses what a series
        counts before its first scrape.
        """
        return product(*(label.values for label in self.labels))


# As Ray's and gRPC's own: both sides of a deployment do the same to a store.
BOTH = (Exporter.SERVICE, Exporter.WORKERS)
WORKERS = (Exporter.WORKERS,)
CANARY = (Exporter.CANARY,)
CHECK = (Exporter.CHECK,)
CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
# A method that the server does not have.
UNKNOWN_METHOD = "unknown"

STREAMS = (
    *(verb.path for verb in VERBS.values() if verb.streams),
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
SINGLE = (*(verb.path for verb in VERBS.values() if not verb.streams), "/grpc.health.v1.Health/Check", UNKNOWN_METHOD)

METHOD = Label("method", (*SINGLE, *STREAMS))
STREAM = Label("method", STREAMS)
UNARY = Label("method", SINGLE)
CODE = Label("code", CODES)
REASON = Label("reason", tuple(REASONS))
CALL_CLASS = Label("class", ("catalog", "reads", "slow", "streams", "forwarded", "standard"))
PRINCIPAL = Label("principal", bound=PRINCIPALS_MAX)
QUOTA = Label("quota", ("principal_bytes_a_minute", "tokens_a_minute", "tokens_a_day", "device_seconds_an_hour"))
OPERATION = Label("operation", ("get", "open", "read", "list", "put", "create", "delete"))
OUTCOME = Label("outcome", ("ok", "absent", "taken", "unreachable", "refused", "missing", "failed"))
ANSWER = Label("answer", ("computed", "kept"))
KERNEL = Label("kernel", ("resumed", "full"))
QUEUE_CLASS = Label("class", ("interactive", "bulk"))
STATE = Label("state", ("complete", "failed", "cancelled"))
USE = Label("use", ("captures", "questions"))
DEVICE = Label("device", ("cpu", "gpu"))
SAE = Label("sae", bound=SAES_MAX)

C, G, H = MetricType.COUNTER, MetricType.GAUGE, MetricType.HISTOGRAM

BUILD_INFO = Metric(
    "actstore_build_info",
    G,
    "1",
    "Always 1. The labels have the process's version, and the newest format of a bucket that it writes.",
    (Label("version", bound=1), Label("format", bound=1)),
    BOTH,
)
# Calls.
CALLS_STARTED = Metric(
    "actstore_calls_started_total", C, "calls", "gRPC calls that began, refused ones too.", (METHOD,)
)
CALLS = Metric(
    "actstore_calls_total",
    C,
    "calls",
    "gRPC calls that ended, by method and status code. CANCELLED: the caller went away before the end.",
    (METHOD, CODE),
)
CALLS_IN_FLIGHT = Metric("actstore_calls_in_flight", G, "calls", "gRPC calls in progress.")
UNARY_SECONDS = Metric(
    "actstore_unary_seconds",
    H,
    "seconds",
    "Seconds from the start to the end of a call with one answer.",
    (UNARY,),
    buckets=CALL_SECONDS,
)
STREAM_SECONDS = Metric(
    "actstore_stream_seconds",
    H,
    "seconds",
    "Seconds from the start to the end of a call that answers with a stream; its reader's pauses are in it.",
    (STREAM,),
    buckets=WORK_SECONDS,
)
FIRST_MESSAGE_SECONDS = Metric(
    "actstore_first_message_seconds",
    H,
    "seconds",
    "Seconds from the start of a call that answers with a stream to its first message.",
    (STREAM,),
    buckets=CALL_SECONDS,
)
MESSAGES = Metric(
    "actstore_stream_messages_total",
    C,
    "messages",
    "Messages of streams that their callers took, counted when a stream ends.",
    (STREAM,),
)
SENT_BYTES = Metric(
    "actstore_sent_bytes_total",
    C,
    "bytes",
    "Bytes of messages that callers took, before gRPC's framing, counted when a call ends.",
    (METHOD,),
)
CALL_PLACES = Metric(
    "actstore_call_places", G, "calls", "Calls of a class that may run at the same time.", (CALL_CLASS,)
)
CALL_PLACES_TAKEN = Metric("actstore_call_places_taken", G, "calls", "Calls of a class that run now.", (CALL_CLASS,))
CALLS_WAITING = Metric(
    "actstore_calls_waiting", G, "calls", "Calls of a class that wait, because all places are taken.", (CALL_CLASS,)
)
PRINCIPAL_CALLS = Metric(
    "actstore_principal_calls_total",
    C,
    "calls",
    "Calls of the contract that ended, by the caller's name. Callers beyond the bound count as `other`.",
    (PRINCIPAL,),
)
PRINCIPAL_BYTES = Metric(
    "actstore_principal_bytes_total",
    C,
    "bytes",
    "Bytes of messages that a caller sent and took, by the caller's name, counted when a call ends.",
    (PRINCIPAL,),
)
QUOTA_REFUSALS = Metric(
    "actstore_quota_refusals_total",
    C,
    "refusals",
    "Calls of principals that were beyond a quota, by the setting of the quota.",
    (QUOTA,),
    BOTH,
)
LOG_LINES_DROPPED = Metric(
    "actstore_log_lines_dropped_total",
    C,
    "lines",
    "Log lines that were left out, because whoever reads standard error did not keep up.",
)
HELD_ROWS_BYTES = Metric(
    "actstore_held_rows_bytes", G, "bytes", "Bytes of decoded activation rows that are cached in memory."
)
HELD_RUNS_BYTES = Metric(
    "actstore_held_runs_bytes", G, "bytes", "Bytes of opened runs, and of answers about them, that are kept in memory."
)
HELD_ROWS_REQUESTS = Metric(
    "actstore_held_rows_requests_total",
    C,
    "requests",
    "Requests for row groups. result: held (cached in memory), or read from the store.",
    (Label("result", ("held", "read")),),
)
REFUSED = Metric(
    "actstore_refused_total",
    C,
    "calls",
    "Calls that ended with an error of actstore's own, by its reason and the class of the method.",
    (REASON, CALL_CLASS),
)
AUTH = Metric(
    "actstore_auth_total",
    C,
    "calls",
    "Calls by what became of their caller: accepted, unauthenticated (no credentials, or wrong ones), denied (may not "
    "do this).",
    (Label("result", ("accepted", "unauthenticated", "denied")),),
)
RELOADED = Metric(
    "actstore_config_last_reload_successful",
    G,
    "1",
    "1 if a file that is read again when it changes could be used the last time, else 0: then what was read before "
    "stays in use. issuer_keys: the keys of the issuer of signed tokens. Absent for files that are not configured.",
    (Label("file", ("access", "issuer_keys", "certificate", "gateway_token")),),
)
CERTIFICATE_EXPIRES = Metric(
    "actstore_certificate_expiry_timestamp_seconds",
    G,
    "seconds",
    "When the certificate that clients are shown expires, in seconds since 1970. Absent without TLS.",
    (Label("file", ("certificate",)),),
)
# The store.
STORE_UP = Metric(
    "actstore_store_up",
    G,
    "1",
    "1 if the store answered its last request, 0 if it could not be reached, is missing, or refused the credentials.",
    exporters=BOTH,
)
STORE_OPERATIONS = Metric(
    "actstore_store_operations_total",
    C,
    "operations",
    "Operations on the store, retries included in one. outcome: ok, absent (no such object), taken (a conditional put "
    "that came second), unreachable, refused (credentials or permissions), missing (no such folder or bucket), failed "
    "(any other error).",
    (OPERATION, OUTCOME),
    BOTH,
)
STORE_OPERATION_SECONDS = Metric(
    "actstore_store_operation_seconds",
    H,
    "seconds",
    "Seconds of an operation on the store, with its retries. A create lasts as long as its writer writes.",
    (OPERATION,),
    BOTH,
    STORE_SECONDS,
)
STORE_BYTES = Metric(
    "actstore_store_bytes_total",
    C,
    "bytes",
    "Bytes read from and written to the store.",
    (Label("direction", ("read", "written")),),
    BOTH,
)
# Sweeps.
SWEEPS = Metric(
    "actstore_sweeps_total",
    C,
    "sweeps",
    "Patching sweeps that returned an answer. answer: computed, or kept (read from the store's cache). kernel: resumed "
    "(partial forward passes), or full (full forward passes, if the model's layers do not support partial ones).",
    (ANSWER, KERNEL),
)
SWEEP_SECONDS = Metric(
    "actstore_sweep_seconds",
    H,
    "seconds",
    "Seconds from the start to the end of a sweep that was computed, its time in queues included.",
    (KERNEL,),
    buckets=WORK_SECONDS,
)
SWEEP_AUDITS_FAILED = Metric(
    "actstore_sweep_audits_failed_total", C, "sweeps", "Sweeps aborted because the audit error exceeded the tolerance."
)
SWEEP_CELLS = Metric(
    "actstore_sweep_cells_total",
    C,
    "cells",
    "Cells in the answers of sweeps, computed or kept (read from the store's cache).",
    (ANSWER,),
)
SWEEP_TOKEN_LAYERS = Metric(
    "actstore_sweep_token_layers_total",
    C,
    "token layers",
    "Work of sweeps in tokens times layers. way: computed (what was run), or full (what full forward passes of all "
    "patched prompts would take).",
    (Label("way", ("computed", "full")),),
)
SWEEP_ERROR = Metric(
    "actstore_sweep_error_of_tolerance",
    H,
    "1",
    "Largest error among a sweep's audited cells, divided by the tolerance; above 1 the sweep is aborted.",
    buckets=SHARES_OF_TOLERANCE,
)
SWEEP_NOISE = Metric(
    "actstore_sweep_noise_of_tolerance",
    H,
    "1",
    "Largest logit difference between two runs with nothing patched, divided by the tolerance of the audit.",
    buckets=SHARES_OF_TOLERANCE,
)
# The workers, as a service sees them.
WORKERS_UP = Metric("actstore_workers_up", G, "1", "1 if the workers answer this service, else 0.")
# Captures.
CAPTURES_RUNNING = Metric("actstore_captures_running", G, "captures", "Captures in progress.", exporters=WORKERS)
CAPTURES_ENDED = Metric(
    "actstore_captures_ended_total",
    C,
    "captures",
    "Captures that have ended since the coordinator started, by final state.",
    (STATE,),
    WORKERS,
)
SHARDS_COMMITTED = Metric(
    "actstore_shards_committed_total",
    C,
    "shards",
    "Shards that were committed since the coordinator started.",
    exporters=WORKERS,
)
TOKENS_COMMITTED = Metric(
    "actstore_tokens_committed_total",
    C,
    "tokens",
    "Tokens in shards that were committed since the coordinator started.",
    exporters=WORKERS,
)
BYTES_COMMITTED = Metric(
    "actstore_bytes_committed_total",
    C,
    "bytes",
    "Bytes in shards that were committed since the coordinator started.",
    exporters=WORKERS,
)
CAPTURES_PAUSED = Metric(
    "actstore_captures_paused",
    G,
    "captures",
    "Captures that wait for a store that cannot be reached or refuses its credentials.",
    exporters=WORKERS,
)
QUEUE_DEPTH = Metric(
    "actstore_queue_depth", G, "captures", "Captures that wait in the queue, by class.", (QUEUE_CLASS,), WORKERS
)
QUEUE_OLDEST = Metric(
    "actstore_queue_oldest_seconds",
    G,
    "seconds",
    "How long the capture has waited that was submitted first, of those in the queue. 0: none waits.",
    (QUEUE_CLASS,),
    WORKERS,
)
CAPTURES_STARTED = Metric(
    "actstore_captures_started_total", C, "captures", "Captures that left the queue.", (QUEUE_CLASS,), WORKERS
)
QUEUE_WAITED = Metric(
    "actstore_queue_waited_seconds_total",
    C,
    "seconds",
    "Seconds in the queue of all captures that left it; divided by their number, the average.",
    (QUEUE_CLASS,),
    WORKERS,
)
CAPTURE_WORKERS = Metric(
    "actstore_capture_workers", G, "workers", "Capture workers that are there, by their device.", (DEVICE,), WORKERS
)
CAPTURE_WORKERS_WANTED = Metric(
    "actstore_capture_workers_wanted",
    G,
    "workers",
    "Capture workers that shards need now, up to the most that there may be. If it is more than are there, those wait "
    "for their nodes.",
    exporters=WORKERS,
)
CAPTURE_WORKERS_IDLE = Metric(
    "actstore_capture_workers_idle",
    G,
    "workers",
    "Capture workers that are there and capture nothing. They are let go after coordinator.worker_idle_seconds.",
    exporters=WORKERS,
)
MODEL_REPLICAS = Metric(
    "actstore_model_replicas",
    G,
    "replicas",
    "Model replicas that answer questions and run sweeps, by their device.",
    (DEVICE,),
    WORKERS,
)
MODEL_REPLICAS_WANTED = Metric(
    "actstore_model_replicas_wanted",
    G,
    "replicas",
    "Model replicas that Ray Serve keeps or starts. If it is more than answer, those wait for their nodes, or load.",
    exporters=WORKERS,
)
MODEL_REPLICA_SECONDS = Metric(
    "actstore_model_replica_seconds_total",
    C,
    "seconds",
    "Seconds for which live questions and sweeps used model replicas. Divided by time and replicas, their use.",
    exporters=WORKERS,
)
SHARD_ATTEMPTS = Metric(
    "actstore_shard_attempts_total",
    C,
    "attempts",
    "Attempts at shards. outcome: committed, second (another coordinator's commit came first), failed, lost (its "
    "worker died).",
    (Label("outcome", ("committed", "second", "failed", "lost")),),
    WORKERS,
)
CAPTURE_SECONDS = Metric(
    "actstore_capture_stage_seconds_total",
    C,
    "seconds",
    "Seconds of shards by stage: wait (for the device, which another shard uses), load (model and SAEs), compute "
    "(forward passes, SAEs, sorting and writing), commit. Divided by the time and the workers, compute is their use.",
    (Label("stage", ("wait", "load", "compute", "commit")),),
    WORKERS,
)
CAPTURE_TOKEN_LAYERS = Metric(
    "actstore_capture_token_layers_total",
    C,
    "token layers",
    "Work of committed shards, in tokens times the layers that run.",
    exporters=WORKERS,
)
CAPTURED_TOKENS = Metric(
    "actstore_captured_tokens_total",
    C,
    "tokens",
    "Tokens of committed shards. kind: sink (an attention sink), or other.",
    (Label("kind", ("sink", OTHER)),),
    WORKERS,
)
NON_FINITE = Metric(
    "actstore_nonfinite_values_total",
    C,
    "values",
    "Values of committed shards that are infinite or NaN. product: rows (of a site), or features (of an SAE).",
    (Label("product", ("rows", "features")),),
    WORKERS,
)
PRINCIPAL_DEVICE_SECONDS = Metric(
    "actstore_principal_device_seconds_total",
    C,
    "seconds",
    "Seconds for which captures, sweeps and live questions used a GPU, or a worker without one, by who asked for them.",
    (PRINCIPAL,),
    WORKERS,
)
PRINCIPAL_TOKENS = Metric(
    "actstore_principal_tokens_total",
    C,
    "tokens",
    "Tokens that models ran on, each as often as one did, for captures, sweeps and live questions, by who asked.",
    (PRINCIPAL,),
    WORKERS,
)
# Models.
MODEL_LOAD_SECONDS = Metric(
    "actstore_model_load_seconds",
    H,
    "seconds",
    "Seconds for which a process of the workers loaded a model, with its SAEs if it is for captures.",
    (USE,),
    WORKERS,
    LOAD_SECONDS,
)
GPU_MEMORY = Metric(
    "actstore_gpu_memory_bytes",
    G,
    "bytes",
    "Memory of GPUs, of all processes together. state: allocated (to tensors), or reserved (by torch, those included).",
    (USE, Label("state", ("allocated", "reserved"))),
    WORKERS,
)
GPU_MEMORY_SHORTAGES = Metric(
    "actstore_gpu_memory_shortages_total",
    C,
    "shortages",
    "How often a tensor found no room on its GPU. outcome: retried (torch made room), or failed (out of memory).",
    (USE, Label("outcome", ("retried", "failed"))),
    WORKERS,
)
# SAEs.
SAE_FVU = Metric(
    "actstore_sae_fvu",
    G,
    "1",
    "The fraction of variance that an SAE does not explain, in its last check by this service.",
    (SAE,),
)
SAE_FVU_CLAIMED = Metric(
    "actstore_sae_fvu_claimed", G, "1", "What the files of that SAE claim of it. Absent if they claim nothing.", (SAE,)
)
SAE_CHECKS = Metric(
    "actstore_sae_checks_total",
    C,
    "checks",
    "Checks of an SAE on stored text; `.wait()` asks for one after each capture. result: as_claimed, or doubtful (what "
    "it explains, how many features fire, or its loss differs from its claims).",
    (Label("result", ("as_claimed", "doubtful")),),
)
# The canary.
CANARY_OK = Metric(
    "actstore_canary_ok",
    G,
    "1",
    "1 if the answers of the last run of the canary were the golden ones, else 0, by check.",
    (Label("check", ("capture", "top_features", "norms", "denoise", "noise")),),
    CANARY,
)
CANARY_RUN = Metric(
    "actstore_canary_last_run_timestamp_seconds",
    G,
    "seconds",
    "When the canary ran last, in seconds since 1970.",
    exporters=CANARY,
)
CANARY_SECONDS = Metric(
    "actstore_canary_run_seconds", G, "seconds", "How long the last run of the canary took.", exporters=CANARY
)

# The bucket.
FSCK_FINDINGS = Metric(
    "actstore_fsck_findings",
    G,
    "objects",
    "Objects of the bucket with which the last check found something, by what it is; orphan, unknown and removed do no "
    "harm.",
    (Label("kind", ("damaged", "unreadable", "missing", "orphan", "unknown", "removed")),),
    CHECK,
)
FSCK_RUN = Metric(
    "actstore_fsck_last_run_timestamp_seconds",
    G,
    "seconds",
    "When the bucket was checked last, in seconds since 1970.",
    exporters=CHECK,
)

# What each process of the workers counts for itself and reports to the one that exports it.
REPORTED = (
    STORE_OPERATIONS,
    STORE_OPERATION_SECONDS,
    STORE_BYTES,
    MODEL_LOAD_SECONDS,
    GPU_MEMORY,
    GPU_MEMORY_SHORTAGES,
)
METRICS: Mapping[str, Metric] = {found.name: found for found in list(globals().values()) if isinstance(found, Metric)}


def exported_by(exporter: Exporter) -> tuple[Metric, ...]:
    """The metrics of one kind of process."""
    return tuple(metric for metric in METRICS.values() if exporter in metric.exporters)
