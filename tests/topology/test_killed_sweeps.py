"""kill -9 of the process that computes a sweep: it goes on in another one, from where it was."""

import os
import signal

import pyarrow as pa
import pytest

from actstore_api.v1 import common_pb2, patching_pb2, service_pb2_grpc
from tests.topology.caller import pair_of
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack

REPLICA = "ray::ServeReplica:actstore:models"
NAMES = ("Mary", "John", "gave", "went")
ENDS_SECONDS = 600.0


def request() -> patching_pb2.RunSweepRequest:
    """Of many prompts, so that it takes some seconds."""
    pairs = [
        pair_of(
            f"When {first} and {second} went , {first} gave {first} {second}",
            f"When {second} and {first} went , {second} gave {second} {first}",
        )
        for first in NAMES
        for second in NAMES
        if first != second
    ]
    return patching_pb2.RunSweepRequest(
        model=common_pb2.ModelReference(name="tiny"),
        pairs=pairs,
        source=patching_pb2.PATCH_SOURCE_ZERO,
        fresh=True,
    )


class Listener:
    """Takes a sweep's updates as they come."""

    def __init__(self, workers: WorkerProcess) -> None:
        self._workers = workers
        self.parts: list[pa.Table] = []
        self.done: list[int] = []
        self.result = patching_pb2.SweepResult()

    def listen(self, kill_after: int | None = None) -> None:
        """SIGKILL for every replica once so many parts have come."""
        with self._workers.channel() as channel:
            verb = service_pb2_grpc.PatchingServiceStub(channel).RunSweep
            for update in verb(request(), metadata=self._workers.metadata(), timeout=ENDS_SECONDS):
                self._take(update)
                if update.HasField("cells") and len(self.parts) == kill_after:
                    for pid in self._workers.processes(REPLICA):
                        os.kill(pid, signal.SIGKILL)

    @property
    def cells(self) -> pa.Table:
        return pa.concat_tables(self.parts)

    def _take(self, update: patching_pb2.RunSweepResponse) -> None:
        if update.HasField("cells"):
            self.parts.append(pa.ipc.open_stream(update.cells.rows.arrow_ipc_stream).read_all())
        elif update.HasField("progress"):
            self.done.append(update.progress.cells_done)
        else:
            self.result = update.result


def test_a_sweep_whose_replica_is_killed_goes_on_from_where_it_was(workers: WorkerProcess) -> None:
    undisturbed, killed = Listener(workers), Listener(workers)
    undisturbed.listen()
    before = set(workers.processes(REPLICA))
    killed.listen(kill_after=max(2, len(undisturbed.parts) // 4))
    assert not before & set(workers.processes(REPLICA))
    # Each row came once, in its place, and for each it was counted once what it cost.
    assert killed.cells.num_rows == undisturbed.cells.num_rows
    for name in ("pair", "direction", "site", "layer", "position", "head"):
        assert killed.cells[name].equals(undisturbed.cells[name])
    assert killed.done == sorted(killed.done)
    assert killed.done[-1] == killed.cells.num_rows
    audits = killed.result.audit, undisturbed.result.audit
    assert audits[0].token_layers == audits[1].token_layers
    assert audits[0].audited_cells == audits[1].audited_cells
    for name in ("logit_difference", "kl"):
        found, expected = killed.cells[name].to_pylist(), undisturbed.cells[name].to_pylist()
        assert found == pytest.approx(expected, abs=1e-5)
    assert killed.result.baselines == undisturbed.result.baselines
