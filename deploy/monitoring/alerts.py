"""All alerts: their rule, what to do, and the series with which each fires, and those with which it is silent.

Series are in promtool's notation: `1+2x10` counts from 1 in steps of 2, ten times; a step is a minute, or `every`. Alerts
that say nothing new while the workers are away have the label `needs: workers`, by which Alertmanager holds them back
under WorkersDown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Series = Mapping[str, str]
# A path in this repository. A lab that publishes the documentation puts its address before it.
RUNBOOKS = "docs/runbooks.md"
# Statuses that are the service's or the workers' own fault.
FAULTS = 'code=~"UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED"'
_LIST = 'method="/actstore_api.v1.CatalogService/ListRuns"'


@dataclass(frozen=True)
class Alert:
    """One alert.

    Args:
        name: Its name.
        severity: page: somebody has to look now. ticket: within days.
        query: PromQL; each series of its result is an alert.
        lasts: How long the query must hold, as Prometheus writes durations.
        summary: One sentence, with the labels of the query's result.
        meaning: What happened, for who is on call.
        steps: What to look at and do, in order.
        fires: Series with which it fires after `after`.
        silent: Series with which it does not.
        after: When both are looked at.
        every: The time between two values of these series.
        needs_workers: Whether it says nothing new while the workers are away.
    """

    name: str
    severity: Literal["page", "ticket"]
    query: str
    lasts: str
    summary: str
    meaning: str
    steps: tuple[str, ...]
    fires: Series
    silent: Series = field(default_factory=dict)
    after: str = "1h"
    every: str = "1m"
    needs_workers: bool = False


def _errors(share: float) -> str:
    failed, all_ = (f"sum by (method) (rate(actstore_calls_total{labels}[5m]))" for labels in (f"{{{FAULTS}}}", ""))
    return f"{failed} / {all_} > {share} and {all_} > 0.01"


_BROKEN_CALLS = {
    f'actstore_calls_total{{{_LIST},code="INTERNAL",job="a"}}': "0+6x60",
    f'actstore_calls_total{{{_LIST},code="OK",job="a"}}': "0+54x60",
}
_FINE_CALLS = {
    f'actstore_calls_total{{{_LIST},code="CANCELLED",job="a"}}': "0+30x60",
    f'actstore_calls_total{{{_LIST},code="INTERNAL",job="a"}}': "0x60",
    f'actstore_calls_total{{{_LIST},code="OK",job="a"}}': "0+54x60",
}

ALERTS = (
    Alert(
        "ServiceAbsent",
        "page",
        "absent(actstore_build_info)",
        "5m",
        "No process of actstore is scraped",
        "Prometheus has heard of no service and no workers. Either none runs, or it does not find their metrics port.",
        (
            "See whether pods or processes of the service run, and what their log ends with.",
            "See Prometheus's page of targets: a network policy, or a changed port, leaves them down.",
        ),
        {'up{job="a"}': "1x60"},
        {'actstore_build_info{version="0.3.0",format="4"}': "1x60"},
    ),
    Alert(
        "ErrorRatioHigh",
        "page",
        _errors(0.05),
        "5m",
        "{{ $value | humanizePercentage }} of calls of {{ $labels.method }} fail",
        "More than 5 % of the calls of a method end with an error that is not the caller's.",
        (
            "Look at `actstore_refused_total` by reason on the dashboard Service: it says what kind of error it is.",
            "Find the lines of such calls in the service's log: `code` and `reason`, and with their `request_id` those of "
            "the workers.",
            "STORE_UNREACHABLE and WORKERS_UNAVAILABLE have alerts of their own, StoreDown and WorkersDown.",
        ),
        _BROKEN_CALLS,
        _FINE_CALLS,
    ),
    Alert(
        "ErrorRatio",
        "ticket",
        _errors(0.01),
        "30m",
        "{{ $value | humanizePercentage }} of calls of {{ $labels.method }} fail",
        "More than 1 % of the calls of a method have ended for half an hour with an error that is not the caller's.",
        ("As for ErrorRatioHigh.",),
        _BROKEN_CALLS,
        _FINE_CALLS,
    ),
    Alert(
        "ObjectCorrupt",
        "page",
        'sum by (method) (increase(actstore_calls_total{code="DATA_LOSS"}[15m])) > 0',
        "0m",
        "An object in the bucket is damaged, as {{ $labels.method }} found",
        "An object's bytes are not those that were written. actstore refuses to answer from it.",
        (
            "Find the object's key in the service's log, in the line before the call's.",
            "Run `actstore check` on the store: it names every damaged object.",
            "Restore the object from a version or a copy of the bucket, or delete the run and capture it again.",
            "If several runs are damaged, stop captures until the store has been looked at.",
        ),
        {f'actstore_calls_total{{{_LIST},code="DATA_LOSS"}}': "0x50 1x10"},
        {f'actstore_calls_total{{{_LIST},code="DATA_LOSS"}}': "5x60"},
    ),
    Alert(
        "SlowReads",
        "ticket",
        "histogram_quantile(0.99, sum by (le, method) (rate(actstore_unary_seconds_bucket"
        '{method!~"/actstore_api.v1.(Model|Sae|Capture|Patching)Service/.*"}[10m]))) > 10',
        "15m",
        "1 % of calls of {{ $labels.method }} take longer than {{ $value | humanizeDuration }}",
        "Stored answers are slow: 1 % of them take more than 10 seconds.",
        (
            "Compare with `actstore_store_operation_seconds` on the dashboard Store: a slow store is the usual cause.",
            "See whether classes of calls are saturated (dashboard Service): then add a replica.",
            "See `actstore_held_rows_requests_total`: if most rows are read again, give the service more "
            "`ACTSTORE_HELD_ROW_BYTES`.",
        ),
        {
            f'actstore_unary_seconds_bucket{{{_LIST},le="10"}}': "0x60",
            f'actstore_unary_seconds_bucket{{{_LIST},le="30"}}': "0+10x60",
            f'actstore_unary_seconds_bucket{{{_LIST},le="+Inf"}}': "0+10x60",
        },
        {
            f'actstore_unary_seconds_bucket{{{_LIST},le="10"}}': "0+10x60",
            f'actstore_unary_seconds_bucket{{{_LIST},le="+Inf"}}': "0+10x60",
        },
    ),
    Alert(
        "SlowFirstMessage",
        "ticket",
        "histogram_quantile(0.99, sum by (le, method) (rate(actstore_first_message_seconds_bucket"
        '{method=~"/actstore_api.v1.(Activation|Feature)Service/.*"}[10m]))) > 10',
        "15m",
        "1 % of streams of {{ $labels.method }} begin after more than {{ $value | humanizeDuration }}",
        "Streams of stored rows begin late: 1 % of them after more than 10 seconds.",
        ("As for SlowReads; the class is `streams`.",),
        {
            'actstore_first_message_seconds_bucket{method="/actstore_api.v1.ActivationService/ReadTokens",le="10"}': "0x60",
            'actstore_first_message_seconds_bucket{method="/actstore_api.v1.ActivationService/ReadTokens",le="30"}': "0+9x60",
            'actstore_first_message_seconds_bucket{method="/actstore_api.v1.ActivationService/ReadTokens",le="+Inf"}': (
                "0+9x60"
            ),
        },
        {
            'actstore_first_message_seconds_bucket{method="/actstore_api.v1.ActivationService/ReadTokens",le="10"}': (
                "0+9x60"
            ),
            'actstore_first_message_seconds_bucket{method="/actstore_api.v1.ActivationService/ReadTokens",le="+Inf"}': (
                "0+9x60"
            ),
        },
    ),
    Alert(
        "Saturated",
        "ticket",
        "avg by (class) (actstore_call_places_taken / actstore_call_places) > 0.9",
        "10m",
        "{{ $value | humanizePercentage }} of the places for calls of the class {{ $labels.class }} are taken",
        "Nearly all places of a class of calls are taken, on average over all replicas. Further calls wait.",
        (
            "See which method and which principal it is (dashboards Service and Cost).",
            "Add replicas of the service. For the class `forwarded` the workers are what is short, not the service.",
        ),
        {
            'actstore_call_places_taken{class="reads",pod="a"}': "32x60",
            'actstore_call_places{class="reads",pod="a"}': "32x60",
        },
        {
            'actstore_call_places_taken{class="reads",pod="a"}': "32x60",
            'actstore_call_places{class="reads",pod="a"}': "32x60",
            'actstore_call_places_taken{class="reads",pod="b"}': "2x60",
            'actstore_call_places{class="reads",pod="b"}': "32x60",
        },
    ),
    Alert(
        "CallsRefused",
        "ticket",
        'sum by (class) (rate(actstore_refused_total{reason="BUSY"}[10m])) > 0.1',
        "15m",
        "{{ $value | humanize }} calls of the class {{ $labels.class }} a second are refused as BUSY",
        "Callers are told to try again later, because all places are taken, or because one caller has too many calls.",
        ("As for Saturated.", "If it is one principal, its limits hold: ask its owner for fewer calls at once."),
        {'actstore_refused_total{reason="BUSY",class="reads"}': "0+60x60"},
        {'actstore_refused_total{reason="ARGUMENT_INVALID",class="reads"}': "0+60x60"},
    ),
    Alert(
        "StrangersRefused",
        "ticket",
        'sum(rate(actstore_auth_total{result="unauthenticated"}[15m])) > 1',
        "15m",
        "{{ $value | humanize }} calls a second have no credentials or wrong ones",
        "Somebody calls with a token that is wrong or has expired, or tries tokens.",
        (
            "See `peer` in the log's lines with the code UNAUTHENTICATED.",
            "If it began with a change of tokens, a client still has the old one: two tokens may be valid at a time.",
        ),
        {'actstore_auth_total{result="unauthenticated"}': "0+120x60"},
        {'actstore_auth_total{result="unauthenticated"}': "0+6x60", 'actstore_auth_total{result="denied"}': "0+120x60"},
    ),
    Alert(
        "ReloadFailed",
        "ticket",
        "min by (file) (actstore_config_last_reload_successful) == 0",
        "5m",
        "The file {{ $labels.file }} is broken; what was read before stays in use",
        "A file that is read again when it changes cannot be used. The service goes on with what it read before, and a "
        "service that starts now would not start.",
        ("See the service's log: the line with the file's setting says what is wrong.", "Mend the file."),
        {'actstore_config_last_reload_successful{file="access",pod="a"}': "1x20 0x40"},
        {'actstore_config_last_reload_successful{file="access",pod="a"}': "1x60"},
    ),
    Alert(
        "CertificateExpires",
        "page",
        "min(actstore_certificate_expiry_timestamp_seconds) - time() < 3 * 86400",
        "5m",
        "The service's certificate expires in {{ $value | humanizeDuration }}",
        "The certificate that clients are shown expires within three days. After that no client can connect.",
        (
            "See why it was not renewed (cert-manager's Certificate, or whoever writes the file).",
            "Write the new certificate and key over the old files. The next handshake uses them; nothing is restarted.",
        ),
        {'actstore_certificate_expiry_timestamp_seconds{file="certificate"}': "100000x60"},
        {'actstore_certificate_expiry_timestamp_seconds{file="certificate"}': "1000000x60"},
    ),
    Alert(
        "VersionsDiffer",
        "ticket",
        "count(count by (version) (actstore_build_info)) > 1",
        "1h",
        "{{ $value }} versions of actstore run beside each other",
        "Services and workers of different versions have run together for an hour: a rollout has stopped halfway.",
        ("See which pods have which version: `actstore_build_info`.", "Finish the rollout, or roll it back."),
        {
            'actstore_build_info{version="0.2.0",format="4"}': "1x120",
            'actstore_build_info{version="0.3.0",format="4"}': "1x120",
        },
        {'actstore_build_info{version="0.3.0",format="4",pod="a"}': "1x120"},
        after="2h",
    ),
    Alert(
        "LogLinesDropped",
        "ticket",
        "sum(increase(actstore_log_lines_dropped_total[15m])) > 0",
        "0m",
        "{{ $value | humanize }} log lines were left out",
        "Whoever collects the service's standard error does not keep up, so lines of the access log are missing.",
        ("See the log collector of the node.",),
        {"actstore_log_lines_dropped_total": "0x50 7x10"},
        {"actstore_log_lines_dropped_total": "7x60"},
    ),
    Alert(
        "WorkersDown",
        "page",
        "max(actstore_workers_up) == 0",
        "2m",
        "The workers answer no service",
        "No replica of the service reaches the workers. Captures and live questions are refused; stored answers go on.",
        (
            "See whether the head of the Ray cluster runs, and the end of its log.",
            "See whether Serve's application is running: `serve status`, or the RayService's conditions.",
            "If the log says that the workers refuse the token, the two sides have different gateway tokens.",
            "Captures go on by themselves when the workers are back: what is committed is kept.",
        ),
        {'actstore_workers_up{pod="a"}': "0x60", 'actstore_workers_up{pod="b"}': "0x60"},
        {'actstore_workers_up{pod="a"}': "0x60", 'actstore_workers_up{pod="b"}': "1x60"},
    ),
    Alert(
        "CoordinatorAbsent",
        "page",
        "count(max_over_time(actstore_captures_running[1d])) > 0 and on () max(actstore_workers_up) == 1"
        " unless on () count(actstore_captures_running)",
        "10m",
        "The workers answer, but their coordinator is not scraped any more",
        "The coordinator's metrics have gone, and the gateway still answers. Captures make no progress without a "
        "coordinator; questions and sweeps go on.",
        (
            "See whether the coordinator runs: `ray list actors` on the head, or the process `ray::_CoordinatorActor`.",
            "See its last lines in the log. Ray starts it again by itself; what is committed and queued is kept.",
            "If captures do make progress, Prometheus does not reach the port of `ACTSTORE_WORKER_METRICS_LISTEN`.",
        ),
        {"actstore_captures_running": "1x20 _x40", 'actstore_workers_up{pod="a"}': "1x60"},
        {"actstore_captures_running": "1x60", 'actstore_workers_up{pod="a"}': "1x60"},
        needs_workers=True,
    ),
    Alert(
        "StoreDown",
        "page",
        "max(actstore_store_up) == 0",
        "2m",
        "The store answers nobody",
        "No process reaches the bucket, or its credentials are refused. Nothing can be answered; captures wait. Services "
        "stay ready on purpose: an outage must not empty all endpoints.",
        (
            "See `actstore_store_operations_total` by outcome: unreachable, refused or missing.",
            "unreachable: see the S3 server, DNS, network policies and proxies.",
            "refused: the keys have expired, or their permissions changed. The credentials file is read again when it "
            "changes.",
        ),
        {'actstore_store_up{pod="a"}': "0x60", 'actstore_store_up{pod="b"}': "0x60"},
        {'actstore_store_up{pod="a"}': "0x60", 'actstore_store_up{pod="b"}': "1x60"},
    ),
    Alert(
        "StoreErrors",
        "ticket",
        'sum by (operation) (rate(actstore_store_operations_total{outcome=~"unreachable|refused|missing|failed"}[10m]))'
        " / sum by (operation) (rate(actstore_store_operations_total[10m])) > 0.01",
        "15m",
        "{{ $value | humanizePercentage }} of the store's {{ $labels.operation }} operations fail",
        "Part of the requests to the store fail after all retries.",
        ("See the S3 server's own metrics: throttling and errors.", "See StoreDown for the meaning of the outcomes."),
        {
            'actstore_store_operations_total{operation="get",outcome="unreachable"}': "0+6x60",
            'actstore_store_operations_total{operation="get",outcome="ok"}': "0+54x60",
        },
        {
            'actstore_store_operations_total{operation="get",outcome="absent"}': "0+6x60",
            'actstore_store_operations_total{operation="get",outcome="ok"}': "0+54x60",
        },
    ),
    Alert(
        "StoreSlow",
        "ticket",
        'histogram_quantile(0.99, sum by (le, operation) (rate(actstore_store_operation_seconds_bucket{operation!="create"}'
        "[10m]))) > 2.5",
        "15m",
        "1 % of the store's {{ $labels.operation }} operations take longer than {{ $value | humanizeDuration }}",
        "The store is slow, or throttles: retries are part of an operation's time.",
        ("See the S3 server's own metrics, and whether a backup or a repair runs.",),
        {
            'actstore_store_operation_seconds_bucket{operation="get",le="2.5"}': "0x60",
            'actstore_store_operation_seconds_bucket{operation="get",le="5"}': "0+9x60",
            'actstore_store_operation_seconds_bucket{operation="get",le="+Inf"}': "0+9x60",
        },
        {
            'actstore_store_operation_seconds_bucket{operation="get",le="2.5"}': "0+9x60",
            'actstore_store_operation_seconds_bucket{operation="get",le="+Inf"}': "0+9x60",
        },
    ),
    Alert(
        "CaptureFailed",
        "ticket",
        'sum(increase(actstore_captures_ended_total{state="failed"}[1h])) > 0',
        "0m",
        "{{ $value | humanize }} captures failed",
        "A capture ended without all of its shards. What is committed is kept.",
        (
            "See the coordinator's log for the run and the cause of the shards that failed.",
            "Ask for the same capture again once the cause is mended: it goes on where it stopped.",
        ),
        {'actstore_captures_ended_total{state="failed"}': "0x50 1x10"},
        {
            'actstore_captures_ended_total{state="failed"}': "1x60",
            'actstore_captures_ended_total{state="complete"}': "0+1x60",
        },
    ),
    Alert(
        "CapturesPaused",
        "ticket",
        "max(actstore_captures_paused) > 0",
        "15m",
        "{{ $value }} captures wait for the store",
        "Captures are paused, because the workers cannot reach the store or its credentials are refused.",
        ("As for StoreDown, from the workers' machines.", "They go on by themselves once the store answers."),
        {"actstore_captures_paused": "1x60"},
        {"actstore_captures_paused": "1x5 0x55"},
        needs_workers=True,
    ),
    Alert(
        "CaptureStalled",
        "ticket",
        "max(actstore_captures_running) > max(actstore_captures_paused)"
        " and sum(increase(actstore_tokens_committed_total[15m])) == 0",
        "15m",
        "Captures run, and nothing is committed",
        "Captures are in progress, but no shard was committed for half an hour.",
        (
            "See `actstore_shard_attempts_total`: failed or lost attempts mean that shards are tried again.",
            "See the log of the capture workers, and whether their GPUs are used.",
            "A single shard of a large model may take that long: compare `actstore_capture_stage_seconds_total`.",
        ),
        {
            "actstore_captures_running": "1x60",
            "actstore_captures_paused": "0x60",
            "actstore_tokens_committed_total": "9x60",
        },
        {
            "actstore_captures_running": "1x60",
            "actstore_captures_paused": "0x60",
            "actstore_tokens_committed_total": "9+9x60",
        },
        needs_workers=True,
    ),
    Alert(
        "CaptureSlow",
        "ticket",
        "sum(rate(actstore_capture_token_layers_total[30m]))"
        ' / sum(rate(actstore_capture_stage_seconds_total{stage=~"wait|load|compute|commit"}[30m]))'
        " < 0.6 * sum(rate(actstore_capture_token_layers_total[1d]))"
        ' / sum(rate(actstore_capture_stage_seconds_total{stage="compute"}[1d]))',
        "30m",
        "Captures do {{ $value | humanize }} token-layers a second, less than 0.6 of a day's forward passes",
        "Shards take longer than their forward passes account for: a worker's second does less than 0.6 of what a second "
        "of computing did over the last day. The time goes into waiting, loading or commits.",
        (
            "See the stages on the dashboard Capture.",
            "commit: the store is slow. wait: two shards share one device, which is normal. load: captures change models "
            "often.",
            "If computing itself has become slow, see whether something else uses the GPU.",
        ),
        {
            "actstore_capture_token_layers_total": "0+1000x144 144000+100x12",
            'actstore_capture_stage_seconds_total{stage="compute"}': "0+600x144 86400+60x12",
            'actstore_capture_stage_seconds_total{stage="commit"}': "0x144 0+540x12",
        },
        {
            "actstore_capture_token_layers_total": "0+1000x156",
            'actstore_capture_stage_seconds_total{stage="compute"}': "0+600x156",
            'actstore_capture_stage_seconds_total{stage="commit"}': "0+60x156",
        },
        after="26h",
        every="10m",
        needs_workers=True,
    ),
    Alert(
        "CaptureSlowed",
        "ticket",
        "sum(rate(actstore_capture_token_layers_total[1h]))"
        ' / sum(rate(actstore_capture_stage_seconds_total{stage="compute"}[1h]))'
        " < 0.6 * sum(rate(actstore_capture_token_layers_total[1d] offset 1d))"
        ' / sum(rate(actstore_capture_stage_seconds_total{stage="compute"}[1d] offset 1d))',
        "1h",
        "Captures compute {{ $value | humanize }} token-layers a second, less than 0.6 of yesterday's rate",
        "A second of computing does less than 0.6 of what it did the day before. CaptureSlow compares the whole of a shard "
        "with its computing; this compares computing with itself.",
        (
            "See which captures ran: a larger model, more sites or SAEs, or a longer context do less a second, rightly.",
            "See whether the GPU is another one, is throttled by heat or power, or is used by something else "
            "(`nvidia-smi`).",
            "See whether torch, the driver or actstore was upgraded since yesterday (`actstore_build_info`).",
        ),
        {
            "actstore_capture_token_layers_total": "0+1000x288 288000+400x24",
            'actstore_capture_stage_seconds_total{stage="compute"}': "0+600x312",
        },
        {
            "actstore_capture_token_layers_total": "0+1000x288 288000+800x24",
            'actstore_capture_stage_seconds_total{stage="compute"}': "0+600x312",
        },
        after="52h",
        every="10m",
        needs_workers=True,
    ),
    Alert(
        "ModelsReload",
        "ticket",
        "sum by (use) (rate(actstore_model_load_seconds_sum[1h])) > 0.5",
        "1h",
        "Models for {{ $labels.use }} are loaded for {{ $value | humanizePercentage }} of the time",
        "Processes of the workers spend their time loading models, and captures or questions wait for it.",
        (
            "See the number and the seconds of loads on the dashboard Capture.",
            "questions: more models are asked for than replicas keep. Raise `ACTSTORE_RAY_MODELS_PER_REPLICA`, if memory "
            "allows, or `ACTSTORE_RAY_MODEL_REPLICAS`.",
            "captures: workers change between captures of different models. Fewer principals at a time change less often.",
            "Few loads that take long: the models' folder is on a slow disk or network.",
        ),
        {'actstore_model_load_seconds_sum{use="questions"}': "0+50x180"},
        {'actstore_model_load_seconds_sum{use="questions"}': "0+10x180"},
        after="3h",
        needs_workers=True,
    ),
    Alert(
        "ShardsRetried",
        "ticket",
        'sum(rate(actstore_shard_attempts_total{outcome="failed"}[30m]))'
        " / sum(rate(actstore_shard_attempts_total[30m])) > 0.1",
        "15m",
        "{{ $value | humanizePercentage }} of attempts at shards fail",
        "More than a tenth of the attempts at shards fail and are made again.",
        ("See the coordinator's log: it has the cause of each failed attempt.",),
        {
            'actstore_shard_attempts_total{outcome="failed"}': "0+1x60",
            'actstore_shard_attempts_total{outcome="committed"}': "0+4x60",
        },
        {
            'actstore_shard_attempts_total{outcome="failed"}': "0x60",
            'actstore_shard_attempts_total{outcome="committed"}': "0+4x60",
        },
        needs_workers=True,
    ),
    Alert(
        "WorkerDeaths",
        "ticket",
        'sum(increase(actstore_shard_attempts_total{outcome="lost"}[1h])) > 3',
        "0m",
        "{{ $value | humanize }} workers died within an hour",
        "Capture workers die during shards. Their shards are given to others, up to a limit for each shard.",
        (
            "See the end of the dead workers' logs, and the kernel's for the out-of-memory killer.",
            "Memory: lower `sequences_per_batch` of the capture, or give workers more.",
        ),
        {'actstore_shard_attempts_total{outcome="lost"}': "0+1x60"},
        {'actstore_shard_attempts_total{outcome="lost"}': "0x59 1"},
    ),
    Alert(
        "NoCaptureWorkers",
        "page",
        "sum(actstore_capture_workers) == 0 and sum(actstore_queue_depth) + sum(actstore_captures_running) > 0",
        "15m",
        "There are captures and no capture worker",
        "Captures wait or run, and the coordinator has no worker to give their shards to. At rest there is none; a node for "
        "what waits should come within minutes.",
        (
            "See whether the autoscaler can start a node with a GPU: its log, the cloud's quota, pods that are pending.",
            "Nodes there, and no worker: the coordinator's log says why a capture worker did not start.",
            "`ACTSTORE_RAY_GPUS_MAX` has to be what the group of nodes may have.",
        ),
        {
            'actstore_capture_workers{device="gpu"}': "0x60",
            'actstore_queue_depth{class="bulk"}': "1x60",
            "actstore_captures_running": "0x60",
        },
        {
            'actstore_capture_workers{device="gpu"}': "0x60",
            'actstore_queue_depth{class="bulk"}': "0x60",
            "actstore_captures_running": "0x60",
        },
        needs_workers=True,
    ),
    Alert(
        "NothingCaptured",
        "page",
        "min_over_time(sum(actstore_capture_workers_wanted)[2h:5m]) > 0"
        " and sum(increase(actstore_shard_attempts_total[2h])) == 0",
        "15m",
        "Shards have waited for two hours, and none was tried to its end",
        "Captures want workers, and no attempt at a shard has ended, well or not: workers come and go without capturing, "
        "or hang.",
        (
            "See whether nodes join and leave again at once, as preempted ones do.",
            "Workers that are there: see what they wait for (`ray stack` on their node), and whether the store answers them.",
            "Shards that take longer than two hours are too large: capture with fewer `sequences_per_shard`.",
        ),
        {
            "actstore_capture_workers_wanted": "2x180",
            'actstore_shard_attempts_total{outcome="committed"}': "5x180",
        },
        {
            "actstore_capture_workers_wanted": "2x180",
            'actstore_shard_attempts_total{outcome="committed"}': "5+1x180",
        },
        after="3h",
        needs_workers=True,
    ),
    Alert(
        "NoModelReplica",
        "page",
        "sum(actstore_model_replicas_wanted) > 0 and sum(actstore_model_replicas) == 0",
        "15m",
        "Questions wait for a model replica",
        "Live questions and sweeps want a model replica, and none is there. Stored answers are not concerned.",
        (
            "See whether the autoscaler can start a node with a GPU, as for NoCaptureWorkers.",
            "Nodes there, and no replica: see why it does not start, in Serve's log on its node.",
        ),
        {"actstore_model_replicas_wanted": "1x60", "actstore_model_replicas": "0x60"},
        {"actstore_model_replicas_wanted": "0x60", "actstore_model_replicas": "0x60"},
        needs_workers=True,
    ),
    Alert(
        "QueueOld",
        "ticket",
        'max(actstore_queue_oldest_seconds{class="interactive"}) > 3600'
        ' or max(actstore_queue_oldest_seconds{class="bulk"}) > 86400',
        "15m",
        "A capture has waited for {{ $value | humanizeDuration }}",
        "A small capture has waited for more than an hour, or a large one for more than a day.",
        ("See who uses the devices (dashboard Cost).", "Add capture workers, or lower the limits of one principal."),
        {'actstore_queue_oldest_seconds{class="interactive"}': "4000x60"},
        {
            'actstore_queue_oldest_seconds{class="bulk"}': "4000x60",
            'actstore_queue_oldest_seconds{class="interactive"}': "40x60",
        },
        needs_workers=True,
    ),
    Alert(
        "QueueStuck",
        "page",
        "sum by (class) (min_over_time(actstore_queue_depth[30m])) > 0"
        " and sum by (class) (increase(actstore_captures_started_total[30m])) == 0 and on () sum(actstore_captures_running) == 0",
        "5m",
        "Captures of the class {{ $labels.class }} wait, and none runs or starts",
        "The queue is not empty, nothing runs, and nothing has left the queue for half an hour.",
        (
            "See the coordinator's log. It continues by itself after a restart: the queue lies in the bucket.",
            "See NoCaptureWorkers.",
        ),
        {
            'actstore_queue_depth{class="bulk"}': "2x60",
            'actstore_captures_started_total{class="bulk"}': "5x60",
            "actstore_captures_running": "0x60",
        },
        {
            'actstore_queue_depth{class="bulk"}': "2x60",
            'actstore_captures_started_total{class="bulk"}': "5x60",
            "actstore_captures_running": "1x60",
        },
        needs_workers=True,
    ),
    Alert(
        "GpuIdle",
        "ticket",
        'sum(actstore_capture_workers{device="gpu"}) > 0'
        ' and on () sum(rate(actstore_capture_stage_seconds_total{stage=~"load|compute"}[30m])) == 0',
        "2h",
        "{{ $value }} capture workers hold GPUs that captured nothing",
        "GPUs are held for captures and have captured nothing for two hours. Only their cost is wrong.",
        (
            "Workers that are not needed are let go after `coordinator.worker_idle_seconds`: see that "
            "`coordinator.workers_min` keeps none.",
            "Shards wait, and nothing is captured: see NothingCaptured.",
        ),
        {
            'actstore_capture_workers{device="gpu"}': "2x240",
            'actstore_capture_stage_seconds_total{stage="compute"}': "500x240",
        },
        {
            'actstore_capture_workers{device="gpu"}': "2x240",
            'actstore_capture_stage_seconds_total{stage="compute"}': "500+9x240",
        },
        after="4h",
        needs_workers=True,
    ),
    Alert(
        "ReplicaIdle",
        "ticket",
        'sum(actstore_model_replicas{device="gpu"}) > 0'
        " and on () sum(rate(actstore_model_replica_seconds_total[30m])) == 0",
        "2h",
        "{{ $value }} model replicas hold GPUs that answered nothing",
        "GPUs are held for live questions and sweeps, and nobody has asked any for two hours. Only their cost is wrong.",
        (
            "Replicas without questions are let go after `ray.replica_idle_seconds`, down to `ray.model_replicas_min`. If "
            "that keeps them so that a first answer is quick, and you want it so, silence this alert.",
            "If more are there than are kept, see in Serve's log why they are not let go.",
        ),
        {
            'actstore_model_replicas{device="gpu"}': "1x240",
            "actstore_model_replica_seconds_total": "500x240",
        },
        {
            'actstore_model_replicas{device="cpu"}': "1x240",
            'actstore_model_replicas{device="gpu"}': "0x240",
            "actstore_model_replica_seconds_total": "500x240",
        },
        after="4h",
        needs_workers=True,
    ),
    Alert(
        "GpuMemoryShort",
        "ticket",
        'sum by (use) (increase(actstore_gpu_memory_shortages_total{outcome="failed"}[1h])) > 0'
        ' or sum by (use) (increase(actstore_gpu_memory_shortages_total{outcome="retried"}[1h])) > 60',
        "0m",
        "GPUs were short of memory {{ $value | humanize }} times within an hour, for {{ $labels.use }}",
        "A tensor found no room on its GPU, and a shard or a question failed; or room was made for more than one tensor a "
        "minute, which makes everything slow.",
        (
            "captures: lower `sequences_per_batch`, or store fewer sites and SAEs in one run.",
            "questions: shorter texts, fewer cells or features at once; lower `ray.models_per_replica`.",
            "A capture worker and a replica may share one GPU, and Ray divides no memory: see the dashboard Capture, Memory of "
            "GPUs. A model has to fit twice, or one of the two needs nodes of its own.",
        ),
        {'actstore_gpu_memory_shortages_total{use="captures",outcome="failed"}': "0x50 1x10"},
        {
            'actstore_gpu_memory_shortages_total{use="captures",outcome="failed"}': "3x60",
            'actstore_gpu_memory_shortages_total{use="captures",outcome="retried"}': "0+0.5x60",
        },
        needs_workers=True,
    ),
    Alert(
        "NonFinite",
        "ticket",
        "sum by (product) (increase(actstore_nonfinite_values_total[1h])) > 0",
        "0m",
        "{{ $value | humanize }} {{ $labels.product }} of captured shards are infinite or NaN",
        "A model or an SAE gave numbers that are infinite or NaN. They are stored as they are, and left out of statistics.",
        (
            "See which run it is: the table of norms by layer has a column `non_finite`.",
            'Often the dtype is too small for the model: capture with `dtype="bfloat16"` or `"float32"`.',
        ),
        {'actstore_nonfinite_values_total{product="rows"}': "0x50 3x10"},
        {'actstore_nonfinite_values_total{product="rows"}': "3x60"},
    ),
    Alert(
        "SinkShareShifted",
        "ticket",
        'sum(rate(actstore_captured_tokens_total{kind="sink"}[6h])) / sum(rate(actstore_captured_tokens_total[6h]))'
        ' > 5 * sum(rate(actstore_captured_tokens_total{kind="sink"}[7d])) / sum(rate(actstore_captured_tokens_total[7d]))'
        " and sum(increase(actstore_captured_tokens_total[6h])) > 10000",
        "1h",
        "{{ $value | humanizePercentage }} of captured tokens are sinks, five times as many as in the last seven days",
        "The share of attention sinks among captured tokens has changed. Another model or dataset does that; so do wrong "
        "weights, a missing BOS, or another `sink_ratio`.",
        ("See which captures ran, and whether they were meant to be of another model.",),
        {
            'actstore_captured_tokens_total{kind="sink"}': "0+10x900 9000+2000x96",
            'actstore_captured_tokens_total{kind="other"}': "0+9990x900 8991000+8000x96",
        },
        {
            'actstore_captured_tokens_total{kind="sink"}': "0+10x1008",
            'actstore_captured_tokens_total{kind="other"}': "0+9990x1008",
        },
        after="166h",
        every="10m",
        needs_workers=True,
    ),
    Alert(
        "SaeDeparted",
        "ticket",
        'sum(increase(actstore_sae_checks_total{result="doubtful"}[1h])) > 0',
        "0m",
        "{{ $value | humanize }} checks of SAEs found numbers that differ from their claims",
        "An SAE explains less of this model than its files claim, or other features fire: it may belong to another site, "
        "scale or model.",
        (
            "Ask for the check again: `run.features(sae).check()` says what differs.",
            "Whoever asked for the capture got the same as a warning.",
        ),
        {'actstore_sae_checks_total{result="doubtful"}': "0x50 1x10"},
        {
            'actstore_sae_checks_total{result="doubtful"}': "1x60",
            'actstore_sae_checks_total{result="as_claimed"}': "0+1x60",
        },
    ),
    Alert(
        "SaeFvuHigh",
        "ticket",
        "max by (sae) (actstore_sae_fvu) > 1.25 * max by (sae) (actstore_sae_fvu_claimed)",
        "0m",
        "{{ $labels.sae }} leaves {{ $value | humanizePercentage }} of the variance unexplained, 1.25 times what it claims",
        "In its last check, an SAE explained less of this model's activations than its files claim.",
        (
            "See SaeDeparted: the check's warnings say what else differs.",
            "A dataset of another kind of text than the SAE was trained on does that, too.",
        ),
        {'actstore_sae_fvu{sae="a"}': "0.4x60", 'actstore_sae_fvu_claimed{sae="a"}': "0.3x60"},
        {'actstore_sae_fvu{sae="a"}': "0.31x60", 'actstore_sae_fvu_claimed{sae="a"}': "0.3x60"},
    ),
    Alert(
        "AuditFailed",
        "page",
        "sum(increase(actstore_sweep_audits_failed_total[15m])) > 0",
        "0m",
        "{{ $value | humanize }} sweeps differ from their full forward passes",
        "Cells of a sweep that were computed again by full forward passes differ by more than the tolerance. The caller "
        "got an error and no numbers.",
        (
            "Find the call in the log: reason AUDIT_FAILED, its `request_id` and model.",
            "Report it with the model's name. Until it is mended, ask for the sweep on a CPU or in float32.",
        ),
        {"actstore_sweep_audits_failed_total": "0x50 1x10"},
        {"actstore_sweep_audits_failed_total": "1x60"},
    ),
    Alert(
        "AuditNear",
        "ticket",
        "histogram_quantile(0.99, sum by (le) (rate(actstore_sweep_error_of_tolerance_bucket[1d]))) > 0.5",
        "1h",
        "Errors of sweeps reach {{ $value | humanizePercentage }} of the tolerance",
        "The largest errors of sweeps come near their tolerance. Nothing is wrong yet.",
        (
            "See which models are swept, and in which dtype.",
            "Compare with the noise floor on the dashboard Interventions.",
        ),
        {
            'actstore_sweep_error_of_tolerance_bucket{le="0.5"}': "0x180",
            'actstore_sweep_error_of_tolerance_bucket{le="0.7"}': "0+1x180",
            'actstore_sweep_error_of_tolerance_bucket{le="+Inf"}': "0+1x180",
        },
        {
            'actstore_sweep_error_of_tolerance_bucket{le="0.01"}': "0+1x180",
            'actstore_sweep_error_of_tolerance_bucket{le="+Inf"}': "0+1x180",
        },
        after="3h",
    ),
    Alert(
        "NoiseFloorHigh",
        "ticket",
        "histogram_quantile(0.9, sum by (le) (rate(actstore_sweep_noise_of_tolerance_bucket[1d]))) > 0.5",
        "1h",
        "Two equal runs differ by {{ $value | humanizePercentage }} of the tolerance",
        "Runs with nothing patched differ from each other by more than half of the tolerance: effects of that size are "
        "noise.",
        ("See whether GPUs or the versions of CUDA and torch changed.", "Use float32 for small effects."),
        {
            'actstore_sweep_noise_of_tolerance_bucket{le="0.5"}': "0x180",
            'actstore_sweep_noise_of_tolerance_bucket{le="0.7"}': "0+1x180",
            'actstore_sweep_noise_of_tolerance_bucket{le="+Inf"}': "0+1x180",
        },
        {
            'actstore_sweep_noise_of_tolerance_bucket{le="0.01"}': "0+1x180",
            'actstore_sweep_noise_of_tolerance_bucket{le="+Inf"}': "0+1x180",
        },
        after="3h",
    ),
    Alert(
        "ReuseLow",
        "ticket",
        'sum(rate(actstore_sweep_token_layers_total{way="full"}[1d]))'
        ' / sum(rate(actstore_sweep_token_layers_total{way="computed"}[1d])) < 1.2',
        "6h",
        "Sweeps compute nearly as much as full forward passes would ({{ $value | humanize }} times less)",
        "Patched runs are hardly resumed from the base run. Sweeps are right, but take longer than they need to.",
        ("See `actstore_sweeps_total` by kernel: `full` means that the model's layers cannot be resumed.",),
        {
            'actstore_sweep_token_layers_total{way="full"}': "0+100x60",
            'actstore_sweep_token_layers_total{way="computed"}': "0+100x60",
        },
        {
            'actstore_sweep_token_layers_total{way="full"}': "0+400x60",
            'actstore_sweep_token_layers_total{way="computed"}': "0+100x60",
        },
        after="10h",
        every="10m",
    ),
    Alert(
        "CanaryWrong",
        "page",
        "min by (check) (actstore_canary_ok) == 0",
        "0m",
        "The canary's {{ $labels.check }} is not what it has to be",
        "A question with a known answer, asked as a researcher asks it, was refused or answered with other numbers.",
        (
            "Run `actstore canary` by hand: it prints what was found and what was expected.",
            "An error instead of numbers has its own alert, such as WorkersDown or StoreDown.",
            "Wrong numbers: stop handing out answers until the cause is known. What was captured since the canary was last "
            "right may be wrong, too.",
        ),
        {'actstore_canary_ok{check="norms"}': "1x50 0x10"},
        {'actstore_canary_ok{check="norms"}': "1x60"},
    ),
    Alert(
        "FsckFindings",
        "page",
        'sum by (kind) (actstore_fsck_findings{kind=~"damaged|unreadable|missing"}) > 0',
        "0m",
        "{{ $value | humanize }} objects of the bucket are {{ $labels.kind }}",
        "`actstore check` read the bucket, and found objects that are not what was written. actstore refuses to answer from "
        "them.",
        (
            "Run `actstore check` by hand, or see the log of the check: it names every object.",
            "Restore the objects from versions or a copy of the bucket, or delete the run and capture it again.",
            "If several runs are damaged, stop captures until the store has been looked at.",
        ),
        {'actstore_fsck_findings{kind="damaged"}': "0x50 2x10"},
        {'actstore_fsck_findings{kind="damaged"}': "0x60", 'actstore_fsck_findings{kind="orphan"}': "9x60"},
    ),
    Alert(
        "FsckNotRunning",
        "ticket",
        "time() - max(actstore_fsck_last_run_timestamp_seconds) > 9 * 86400",
        "1h",
        "The bucket was checked {{ $value | humanizeDuration }} ago",
        "The weekly check of the bucket is configured, and has not reported for nine days.",
        ("See the job of `actstore check`, and whether its file still reaches Prometheus.",),
        {"actstore_fsck_last_run_timestamp_seconds": "0x240"},
        {"actstore_fsck_last_run_timestamp_seconds": "0+3600x240"},
        after="235h",
        every="1h",
    ),
    Alert(
        "CanaryNotRunning",
        "ticket",
        "time() - max(actstore_canary_last_run_timestamp_seconds) > 3600",
        "10m",
        "The canary has not run for {{ $value | humanizeDuration }}",
        "The canary is configured, and has not reported for an hour: nothing checks that numbers are right.",
        ("See the canary's job, and whether its file still reaches Prometheus.",),
        {"actstore_canary_last_run_timestamp_seconds": "0x120"},
        {"actstore_canary_last_run_timestamp_seconds": "0+60x120"},
        after="2h",
    ),
)
