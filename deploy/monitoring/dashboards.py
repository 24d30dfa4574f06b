"""The dashboards: what each of their panels asks, in which unit, and how it is drawn."""

from dataclasses import dataclass
from typing import Literal

# Grafana's variable for the range between two points, and what it means for a rate.
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel: its queries with their legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    about: str = ""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; its uid stays the same, so that links to it stay valid."""

    uid: str
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str = "", labels: str = "") -> str:
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({metric}{{{labels}}}[{RATE}]))" if labels else f"sum{group} (rate({metric}[{RATE}]))"


def _quantile(share: float, metric: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket[{RATE}])))"


def _average(metric: str, by: str = "") -> str:
    return f"{_rate(f'{metric}_sum', by)} / {_rate(f'{metric}_count', by)}"


SERVICE = Dashboard(
    "actstore-service",
    "actstore: Service",
    (
        Panel("Calls", "reqps", ((_rate("actstore_calls_total", "method"), "{{method}}"),)),
        Panel("Calls that began", "reqps", ((_rate("actstore_calls_started_total"), "began"),)),
        Panel("Calls by status", "reqps", ((_rate("actstore_calls_total", "code"), "{{code}}"),)),
        Panel(
            "Errors by reason",
            "reqps",
            ((_rate("actstore_refused_total", "reason, class"), "{{reason}} {{class}}"),),
            about="Every error of actstore's own, the callers' mistakes among them.",
        ),
        Panel(
            "Seconds of calls with one answer",
            "s",
            (
                (_quantile(0.5, "actstore_unary_seconds", "method"), "half of {{method}}"),
                (_quantile(0.99, "actstore_unary_seconds", "method"), "99 % of {{method}}"),
            ),
        ),
        Panel(
            "Seconds to a stream's first message",
            "s",
            ((_quantile(0.99, "actstore_first_message_seconds", "method"), "99 % of {{method}}"),),
        ),
        Panel(
            "Seconds of streams", "s", ((_quantile(0.9, "actstore_stream_seconds", "method"), "90 % of {{method}}"),)
        ),
        Panel("Messages of streams", "ops", ((_rate("actstore_stream_messages_total", "method"), "{{method}}"),)),
        Panel("Bytes sent", "Bps", ((_rate("actstore_sent_bytes_total", "method"), "{{method}}"),)),
        Panel("Open calls", "short", (("sum(actstore_calls_in_flight)", "open"),)),
        Panel(
            "Places taken",
            "percentunit",
            (("avg by (class) (actstore_call_places_taken / actstore_call_places)", "{{class}}"),),
            about="Near 1, further calls of the class wait.",
        ),
        Panel("Calls that wait", "short", (("sum by (class) (actstore_calls_waiting)", "{{class}}"),)),
        Panel("Who is let in", "reqps", ((_rate("actstore_auth_total", "result"), "{{result}}"),)),
        Panel(
            "Files that are read again",
            "short",
            (("min by (file) (actstore_config_last_reload_successful)", "{{file}}"),),
            about="0: the file is broken, and what was read before stays in use.",
        ),
        Panel(
            "Certificate expires in",
            "s",
            (("min(actstore_certificate_expiry_timestamp_seconds) - time()", "certificate"),),
            "stat",
        ),
        Panel("Workers answer", "short", (("max(actstore_workers_up)", "workers"),), "stat"),
        Panel("Versions", "short", (("count by (version) (actstore_build_info)", "{{version}}"),), "stat"),
        Panel("Log lines left out", "short", ((_rate("actstore_log_lines_dropped_total"), "lines"),)),
    ),
)

CAPTURE = Dashboard(
    "actstore-capture",
    "actstore: Capture",
    (
        Panel("Tokens committed", "ops", ((_rate("actstore_tokens_committed_total"), "tokens"),)),
        Panel("Bytes committed", "Bps", ((_rate("actstore_bytes_committed_total"), "bytes"),)),
        Panel("Shards committed", "ops", ((_rate("actstore_shards_committed_total"), "shards"),)),
        Panel(
            "Token-layers a second of computing",
            "ops",
            (
                (
                    _rate("actstore_capture_token_layers_total")
                    + " / "
                    + _rate("actstore_capture_stage_seconds_total", labels='stage="compute"'),
                    "while computing",
                ),
                (
                    f"{_rate('actstore_capture_token_layers_total')} / {_rate('actstore_capture_stage_seconds_total')}",
                    "over all stages",
                ),
            ),
            about="The second line below the first is time that is not spent in forward passes.",
        ),
        Panel("Stages", "short", ((_rate("actstore_capture_stage_seconds_total", "stage"), "{{stage}}"),)),
        Panel(
            "Captures",
            "short",
            (("max(actstore_captures_running)", "running"), ("max(actstore_captures_paused)", "paused")),
        ),
        Panel(
            "Captures that ended",
            "short",
            (("sum by (state) (increase(actstore_captures_ended_total[1h]))", "{{state}}"),),
        ),
        Panel("Queue", "short", (("sum by (class) (actstore_queue_depth)", "{{class}}"),)),
        Panel("Oldest in the queue", "s", (("max by (class) (actstore_queue_oldest_seconds)", "{{class}}"),)),
        Panel(
            "Average wait",
            "s",
            (
                (
                    "sum by (class) (increase(actstore_queue_waited_seconds_total[1h]))"
                    " / sum by (class) (increase(actstore_captures_started_total[1h]))",
                    "{{class}}",
                ),
            ),
        ),
        Panel(
            "Capture workers",
            "short",
            (
                ("sum by (device) (actstore_capture_workers)", "{{device}}"),
                ("sum(actstore_capture_workers_wanted)", "wanted"),
                ("sum(actstore_capture_workers_idle)", "idle"),
            ),
        ),
        Panel(
            "Model replicas",
            "short",
            (
                ("sum by (device) (actstore_model_replicas)", "{{device}}"),
                ("sum(actstore_model_replicas_wanted)", "wanted"),
                ("sum(rate(actstore_model_replica_seconds_total[5m]))", "in use"),
            ),
        ),
        Panel("Attempts at shards", "ops", ((_rate("actstore_shard_attempts_total", "outcome"), "{{outcome}}"),)),
        Panel(
            "Seconds of loading a model",
            "s",
            ((_quantile(0.9, "actstore_model_load_seconds", "use"), "90 % for {{use}}"),),
        ),
        Panel(
            "Models loaded",
            "short",
            (("sum by (use) (increase(actstore_model_load_seconds_count[1h]))", "{{use}}"),),
        ),
        Panel(
            "Memory of GPUs",
            "bytes",
            (("sum by (use, state) (actstore_gpu_memory_bytes)", "{{use}} {{state}}"),),
        ),
        Panel(
            "Shortages of GPU memory",
            "ops",
            ((_rate("actstore_gpu_memory_shortages_total", "use, outcome"), "{{use}} {{outcome}}"),),
        ),
    ),
)

INTERVENTIONS = Dashboard(
    "actstore-interventions",
    "actstore: Interventions",
    (
        Panel("Sweeps", "ops", ((_rate("actstore_sweeps_total", "answer, kernel"), "{{answer}} {{kernel}}"),)),
        Panel("Cells", "ops", ((_rate("actstore_sweep_cells_total", "answer"), "{{answer}}"),)),
        Panel(
            "Reuse",
            "short",
            (
                (
                    _rate("actstore_sweep_token_layers_total", labels='way="full"')
                    + " / "
                    + _rate("actstore_sweep_token_layers_total", labels='way="computed"'),
                    "full over computed",
                ),
            ),
            about="How many times more full forward passes of all patched prompts would compute.",
        ),
        Panel(
            "Error of the tolerance",
            "percentunit",
            ((f"sum by (le) (increase(actstore_sweep_error_of_tolerance_bucket[{RATE}]))", "{{le}}"),),
            "heatmap",
        ),
        Panel(
            "Noise of the tolerance",
            "percentunit",
            ((f"sum by (le) (increase(actstore_sweep_noise_of_tolerance_bucket[{RATE}]))", "{{le}}"),),
            "heatmap",
        ),
        Panel(
            "Average error of the tolerance", "percentunit", ((_average("actstore_sweep_error_of_tolerance"), "error"),)
        ),
        Panel("Failed audits", "short", (("sum(increase(actstore_sweep_audits_failed_total[1h]))", "sweeps"),), "stat"),
        Panel("Seconds of sweeps", "s", ((_quantile(0.9, "actstore_sweep_seconds", "kernel"), "90 % of {{kernel}}"),)),
    ),
)

STORE = Dashboard(
    "actstore-store",
    "actstore: Store",
    (
        Panel("Store answers", "short", (("min by (job) (actstore_store_up)", "{{job}}"),), "stat"),
        Panel(
            "Operations",
            "ops",
            ((_rate("actstore_store_operations_total", "operation, outcome"), "{{operation}} {{outcome}}"),),
        ),
        Panel(
            "Seconds of operations",
            "s",
            ((_quantile(0.99, "actstore_store_operation_seconds", "operation"), "99 % of {{operation}}"),),
        ),
        Panel("Bytes", "Bps", ((_rate("actstore_store_bytes_total", "direction"), "{{direction}}"),)),
        Panel(
            "Rows and runs in memory",
            "bytes",
            (("sum(actstore_held_rows_bytes)", "rows"), ("sum(actstore_held_runs_bytes)", "runs")),
        ),
        Panel("Requests for rows", "ops", ((_rate("actstore_held_rows_requests_total", "result"), "{{result}}"),)),
        Panel("Findings of the last check", "short", (("sum by (kind) (actstore_fsck_findings)", "{{kind}}"),), "stat"),
        Panel("Bucket was checked", "s", (("time() - max(actstore_fsck_last_run_timestamp_seconds)", "ago"),), "stat"),
    ),
)

NUMBERS = Dashboard(
    "actstore-numbers",
    "actstore: Numbers",
    (
        Panel("Canary", "short", (("min by (check) (actstore_canary_ok)", "{{check}}"),), "stat"),
        Panel("Canary ran", "s", (("time() - max(actstore_canary_last_run_timestamp_seconds)", "ago"),), "stat"),
        Panel("Seconds of the canary", "s", (("max(actstore_canary_run_seconds)", "canary"),)),
        Panel(
            "Checks of SAEs", "short", (("sum by (result) (increase(actstore_sae_checks_total[1h]))", "{{result}}"),)
        ),
        Panel(
            "Variance that SAEs do not explain",
            "percentunit",
            (
                ("max by (sae) (actstore_sae_fvu)", "{{sae}}"),
                ("max by (sae) (actstore_sae_fvu_claimed)", "{{sae}} claims"),
            ),
        ),
        Panel(
            "Values that are not finite",
            "short",
            (("sum by (product) (increase(actstore_nonfinite_values_total[1h]))", "{{product}}"),),
        ),
        Panel(
            "Share of sinks",
            "percentunit",
            (
                (
                    'sum(rate(actstore_captured_tokens_total{kind="sink"}[6h])) / sum(rate(actstore_captured_tokens_total[6h]))',
                    "sinks",
                ),
            ),
        ),
    ),
)

COST = Dashboard(
    "actstore-cost",
    "actstore: Cost",
    (
        Panel(
            "Seconds of devices by principal",
            "short",
            (("sum by (principal) (increase(actstore_principal_device_seconds_total[1d]))", "{{principal}}"),),
        ),
        Panel(
            "Calls by principal", "reqps", ((_rate("actstore_principal_calls_total", "principal"), "{{principal}}"),)
        ),
        Panel("Bytes by principal", "Bps", ((_rate("actstore_principal_bytes_total", "principal"), "{{principal}}"),)),
        Panel(
            "Tokens by principal", "short", ((_rate("actstore_principal_tokens_total", "principal"), "{{principal}}"),)
        ),
        Panel("Refusals by quota", "reqps", ((_rate("actstore_quota_refusals_total", "quota"), "{{quota}}"),)),
        Panel(
            "Use of capture workers",
            "percentunit",
            (
                (
                    _rate("actstore_capture_stage_seconds_total", labels='stage=~"load|compute"')
                    + " / sum(actstore_capture_workers)",
                    "busy",
                ),
            ),
        ),
    ),
)

DASHBOARDS = (SERVICE, CAPTURE, INTERVENTIONS, STORE, NUMBERS, COST)
