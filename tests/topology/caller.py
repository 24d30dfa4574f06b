"""Calls to the workers' gateway, as the service makes them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2, common_pb2, patching_pb2, service_pb2_grpc
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.rows.reading import read_tokens
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.worker_process import WorkerProcess

CALL_SECONDS = 600
# Captures begun for something that has to happen before their end, of which none is slow.
TRIES = 5
TINY = common_pb2.ModelReference(name="tiny")
TINY_SAE: dict[str, Any] = {"model": TINY, "sae": "small-sae"}
PROMPT = "Mary gave a book"


def specification(
    run: str, model: str = "tiny", dataset: str = "words.jsonl", **more: object
) -> capture_pb2.CaptureSpecification:
    return capture_pb2.CaptureSpecification(
        run=run,
        model=common_pb2.ModelReference(name=model),
        dataset=capture_pb2.DatasetReference(name=dataset),
        **more,
    )


class Caller:
    def __init__(self, workers: WorkerProcess, channel: grpc.Channel) -> None:
        self.captures = service_pb2_grpc.CaptureServiceStub(channel)
        self.sweeps = service_pb2_grpc.PatchingServiceStub(channel)
        self.saes = service_pb2_grpc.SaeServiceStub(channel)
        self.models = service_pb2_grpc.ModelServiceStub(channel)
        self.with_token = {"metadata": workers.metadata(), "timeout": CALL_SECONDS}

    def start(self, wanted: capture_pb2.CaptureSpecification) -> str:
        request = capture_pb2.StartCaptureRequest(specification=wanted)
        return self.captures.StartCapture(request, **self.with_token).run

    def watch(self, run: str) -> Iterator[capture_pb2.CaptureProgress]:
        request = capture_pb2.WatchCaptureRequest(run=run)
        return (update.progress for update in self.captures.WatchCapture(request, **self.with_token))

    def sweep(self, **change: object) -> list[patching_pb2.RunSweepResponse]:
        return list(self.sweeping(**change))

    def sweeping(self, **change: object) -> Iterator[patching_pb2.RunSweepResponse]:
        """The updates as they come."""
        yield from self.sweeps.RunSweep(self._sweep(change), **self.with_token)

    def estimate(self, **change: object) -> patching_pb2.SweepEstimate:
        request = patching_pb2.EstimateSweepRequest(sweep=self._sweep(change))
        return self.sweeps.EstimateSweep(request, **self.with_token).estimate

    @staticmethod
    def _sweep(change: dict[str, object]) -> patching_pb2.RunSweepRequest:
        fields = {
            "model": common_pb2.ModelReference(name="tiny"),
            "pairs": [pair_of("When Mary and John went , Mary gave", "When Mary and John went , John gave")],
        }
        return patching_pb2.RunSweepRequest(**fields | change)


def prompt(text: str) -> common_pb2.Prompt:
    """A text as a question has it."""
    return common_pb2.Prompt(text=text)


def pair_of(clean: str, corrupt: str, clean_answer: str = "John", corrupt_answer: str = "Mary") -> Any:
    """The message of two prompts and their answers, all of them texts."""
    return patching_pb2.PromptPair(
        clean=prompt(clean),
        corrupt=prompt(corrupt),
        clean_answer=common_pb2.TokenReference(text=clean_answer),
        corrupt_answer=common_pb2.TokenReference(text=corrupt_answer),
    )


def failure(error: grpc.RpcError) -> Failure:
    status = rpc_status.from_call(error)
    assert status is not None
    found = from_status(status)
    assert found is not None
    return found


def swept_cells(updates: Sequence[patching_pb2.RunSweepResponse]) -> pa.Table:
    parts = [update.cells.rows.arrow_ipc_stream for update in updates if update.HasField("cells")]
    return pa.concat_tables(pa.ipc.open_stream(part).read_all() for part in parts)


def table(message: common_pb2.Table) -> pa.Table:
    return pa.ipc.open_stream(message.arrow_ipc_stream).read_all()


def large_sweep() -> patching_pb2.RunSweepRequest:
    """Of many pairs, so that it takes some seconds."""
    return patching_pb2.RunSweepRequest(
        model=common_pb2.ModelReference(name="tiny"),
        pairs=[pair_of("When Mary and John went", "When John and Mary went")] * 201,
        fresh=True,
        source=patching_pb2.PATCH_SOURCE_ZERO,
    )


def cpu_seconds(pids: Sequence[int]) -> float:
    """That these processes have used, user and system, since they started."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def snapshot(folder: Path, run: str) -> Snapshot:
    return open_run(open_bucket(str(folder / "store")), run)


def check_tokens(seen: Snapshot) -> None:
    """Every token once: rows (sequence, position) ascend without a gap or a repeat, up to the run's total."""
    assert seen.complete
    rows = pa.Table.from_batches(list(read_tokens(seen)))
    assert rows.num_rows == seen.record.tokens_total == seen.tokens_committed
    sequence, position = (rows[name].to_numpy() for name in ("sequence", "position"))
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    np.testing.assert_array_equal(sequence[starts], np.arange(seen.record.sequences_total))
    expected = np.concatenate([np.arange(n) for n in np.diff(starts, append=len(sequence))])
    np.testing.assert_array_equal(position, expected)
