"""Sweeps as callers of the gateway meet them."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pyarrow as pa
import pytest

from actstore_api.v1 import capture_pb2, common_pb2, model_pb2, patching_pb2
from tests.topology.caller import (
    CALL_SECONDS,
    PROMPT,
    TINY,
    Caller,
    cpu_seconds,
    failure,
    large_sweep,
    pair_of,
    prompt,
    specification,
    swept_cells,
)
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack


def test_a_sweep_streams_progress_cells_and_one_result(caller: Caller) -> None:
    *updates, last = caller.sweep()
    result, cells = last.result, swept_cells(updates)
    done = [update.progress.cells_done for update in updates if update.HasField("progress")]
    assert done[-1] == cells.num_rows == 2 * 3 * 9 * 6
    assert {"pair", "direction", "site", "layer", "position", "head", "token", "kl", "normalized"} < {
        *cells.column_names
    }
    assert result.audit.kernel == patching_pb2.SWEEP_KERNEL_RESUMED
    assert 0 < result.audit.largest_error <= result.audit.tolerance
    whole = [
        row["normalized"]
        for row in cells.to_pylist()
        if (row["site"], row["layer"], row["position"]) == ("resid_pre", 0, 7)
    ]
    assert whole == pytest.approx([1, 1], abs=1e-4)
    tokens = pa.ipc.open_stream(result.tokens.arrow_ipc_stream).read_all()
    assert tokens["clean"].to_pylist() == ["<bos>", *["When", "Mary", "and", "John", "went", ",", "Mary", "gave"]]
    assert result.clean_logit_difference != result.corrupt_logit_difference
    origin = result.provenance
    assert (origin.model, origin.dtype, origin.run) == ("tiny", common_pb2.DTYPE_FLOAT32, "")


def test_a_sweep_takes_an_sae_of_the_catalog_and_rows_of_a_stored_run(caller: Caller) -> None:
    run = caller.start(specification("rows", dense_sites=["resid_post.1"]))
    *_, last = caller.watch(run)
    assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    fields = {"sae": "small-sae", "source": patching_pb2.PATCH_SOURCE_RESAMPLE}
    fields["stored"] = patching_pb2.StoredSource(run=run)
    *updates, end = caller.sweep(**fields, positions=patching_pb2.PATCH_POSITIONS_LAST)
    names = swept_cells(updates)["name"].to_pylist()
    assert [name for name in names if name is not None] == ["together", "error"] * 2
    assert dict(end.result.provenance.sae_sha256).keys() == {"small-sae"}
    taken = end.result.stored_rows
    assert (taken.run, taken.used, taken.stored) == (run, 9, last.tokens_committed)
    with pytest.raises(grpc.RpcError) as refusal:
        caller.sweep(sae="no-sae")
    assert failure(refusal.value).reason == "SAE_NOT_FOUND"


def test_a_small_sweep_does_not_wait_for_a_large_one(caller: Caller) -> None:
    large = caller.sweeps.RunSweep(large_sweep(), **caller.with_token)
    next(large)
    small = {"sites": ["z"], "layers": [1], "heads": [0], "directions": [patching_pb2.PATCH_DIRECTION_NOISE]}
    *updates, last = caller.sweep(**small, fresh=True)
    assert swept_cells(updates).num_rows == 9
    assert not last.result.audit.cached
    large.cancel()


def test_a_sweep_that_was_left_frees_its_replica(workers: WorkerProcess, caller: Caller) -> None:
    """Within a second's work, of the many that the sweep would take; told by the processor's time, which no other
    process takes part in.
    """
    stream = caller.sweeps.RunSweep(large_sweep(), **caller.with_token)
    next(stream)
    pids = workers.processes("ray::ServeReplica:actstore:models")
    begun = cpu_seconds(pids)
    wait_until(lambda: cpu_seconds(pids) - begun > 0.5, "work on the sweep")
    stream.cancel()
    left = cpu_seconds(pids)

    def idle() -> bool:
        before = cpu_seconds(pids)
        time.sleep(0.5)
        return cpu_seconds(pids) - before < 0.1

    wait_until(idle, "rest")
    assert cpu_seconds(pids) - left < 1.0


def test_the_answer_is_kept_and_an_estimate_says_so(caller: Caller) -> None:
    request = {"sites": ["attn_out"], "layers": [2]}
    before = caller.estimate(**request)
    *updates, computed = caller.sweep(**request)
    *kept_updates, kept = caller.sweep(**request)
    assert swept_cells(kept_updates).equals(swept_cells(updates))
    assert (computed.result.audit.cached, kept.result.audit.cached) == (False, True)
    assert before.token_layers == computed.result.audit.token_layers
    assert (before.cells, before.cached) == (swept_cells(updates).num_rows, False)
    assert (caller.estimate(**request).cached, caller.estimate(**request).seconds) == (True, 0)


@pytest.mark.parametrize(
    ("change", "code", "reason", "field"),
    [
        (
            {"pairs": [pair_of("Mary gave", "When")]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "PROMPT_LENGTHS_DIFFER",
            "corrupt",
        ),
        (
            {"pairs": [pair_of("Mary gave", "John gave", clean_answer="a b")]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "ANSWER_NOT_ONE_TOKEN",
            "clean_answer",
        ),
        ({"model": common_pb2.ModelReference(name="nobody")}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "model"),
        ({"model": common_pb2.ModelReference()}, grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", "model.name"),
        ({"sites": ["resid_end"]}, grpc.StatusCode.INVALID_ARGUMENT, "SITE_UNKNOWN", "sites"),
        ({"directions": [7]}, grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", "directions"),
    ],
)
def test_a_refused_sweep_says_why_and_sends_nothing_else(
    caller: Caller, change: dict[str, object], code: grpc.StatusCode, reason: str, field: str
) -> None:
    request = {"model": common_pb2.ModelReference(name="tiny"), "pairs": [pair_of("Mary gave", "John gave")]}
    stream = caller.sweeps.RunSweep(patching_pb2.RunSweepRequest(**request | change), **caller.with_token)
    with pytest.raises(grpc.RpcError) as refusal:
        next(stream)
    assert refusal.value.code() == code
    found = failure(refusal.value)
    assert (found.reason, found.details["field"]) == (reason, field)


# More than twice as many as the replicas have places.
FLOOD = 40


class Flood:
    """Sweeps of one principal, all at once, of which each takes seconds alone."""

    def __init__(self, workers: WorkerProcess, caller: Caller, principal: str) -> None:
        metadata = (*workers.metadata(), ("actstore-principal", principal))
        self.begun, self.ended = threading.Event(), Counter[str]()
        sweep = large_sweep()
        self._calls = [caller.sweeps.RunSweep(sweep, metadata=metadata, timeout=CALL_SECONDS) for _ in range(FLOOD)]
        self._threads = ThreadPoolExecutor(FLOOD)
        for call in self._calls:
            self._threads.submit(self._read, call)

    def _read(self, call: grpc.Call) -> None:
        with suppress(grpc.RpcError):
            for _ in call:
                self.begun.set()
            self.ended["whole"] += 1

    def __enter__(self) -> "Flood":
        assert self.begun.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        for call in self._calls:
            call.cancel()
        self._threads.shutdown()


def test_a_small_question_does_not_wait_for_anothers_flood(workers: WorkerProcess, caller: Caller) -> None:
    lens = model_pb2.GetTextLensRequest(model=TINY, text=prompt(PROMPT))
    caller.models.GetTextLens(lens, **caller.with_token)  # the model is there
    with Flood(workers, caller, "ann") as flood:
        ended = flood.ended["whole"]
        metadata = (*workers.metadata(), ("actstore-principal", "bob"))
        assert caller.models.GetTextLens(lens, metadata=metadata, timeout=CALL_SECONDS).tops.arrow_ipc_stream
        assert flood.ended["whole"] <= ended + 1
    wait_until(lambda: {"ann", "bob"} <= used(caller).keys(), "what both used is counted")
    assert used(caller)["ann"] > used(caller)["bob"] > 0


def used(caller: Caller) -> dict[str, float]:
    """Seconds of devices, by principal."""
    totals = caller.captures.GetCaptureTotals(capture_pb2.GetCaptureTotalsRequest(), **caller.with_token)
    return {one.principal: one.device_seconds for one in totals.principals if one.device_seconds}
