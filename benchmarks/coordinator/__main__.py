"""Measures how much of one core the coordinator spends on a shard, with 10, 100 and 1,000 workers over a SeaweedFS, and
how long it takes to take up a run of 10 million shards.

The workers are simulated: each writes a real commit into the store, on a thread, and captures nothing. The coordinator
is the real one, without Ray: queue, fair shares, attempts, progress, and folding of commits into checkpoints. Counted
is the CPU time of its event loop, which limits how many shards it hands out; threads that write and fold are not.

The run of 10 million shards is one of checkpoints alone, as the real code writes them; commits repeat, because making
each of them takes a day. Taking it up is opening it, and finding which shards are missing.

Predicted: a shard costs the loop some 0.3 ms, whatever the number of workers: choosing a worker and a capture takes
constant time. 1,000 GPUs at 100,000 tokens a second finish 2,500 shards of 40,000 tokens a second, so a shard may cost
0.4 ms. Opening 10 million shards reads 153 objects.

Measured beside much other work: 0.52, 0.58 and 0.56 ms of the loop with 10, 100 and 1,000 workers.
"""

import argparse
import asyncio
import json
import resource
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from actstore_api.records.capture import CaptureProgress, CaptureSpecification
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.blocks import aligned_blocks
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import checkpoint_key, commit_key
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.checkpoint import Summary, encoded_checkpoint
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.wanted import Queued
from actstore_storage.upkeep.folding import BLOCKS, fold_commits
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits
from actstore_worker.capture.merging import Merging
from actstore_worker.capture.queueing.progress import CaptureState
from actstore_worker.capture.run_plan import RunPlan
from actstore_worker.capture.shards.report import ShardReport
from benchmarks.parts.synthetic_runs import synthetic_record
from tests.servers import SeaweedServer

WORKERS = (10, 100, 1000)
SHARDS, LARGE = 4000, 10_000_000
SEQUENCES, TOKENS = 40, 40_000
# How long a worker has a shard: so long that all workers together finish about as many a second, whatever their number.
SECONDS_A_SHARD = {10: 0.02, 100: 0.2, 1000: 2.0}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments.add_argument("--shards", type=int, default=SHARDS, help="shards of the run that is dispatched")
    arguments.add_argument("--large", type=int, default=LARGE, help="shards of the run that is taken up")
    options = arguments.parse_args()
    found: dict[str, float] = {}
    with SeaweedServer() as server:
        access = S3Access(server.endpoint, server.access_key, server.secret_key, secure=False)
        for workers in WORKERS:
            bucket = open_bucket(f"s3://{server.bucket}/dispatch-{workers}", access)
            loop_ms, rate = asyncio.run(dispatched(bucket, workers, options.shards))
            found |= {f"loop_ms_{workers}_workers": round(loop_ms, 4), f"shards_a_second_{workers}": round(rate, 1)}
            print(f"{workers:>5} workers: {loop_ms:.3f} ms of the loop a shard, {rate:,.0f} shards a second")
        bucket = open_bucket(f"s3://{server.bucket}/large", access)
        build(bucket, options.large)
        seconds, cpu_seconds, megabytes = taken_up(bucket)
        found |= {
            f"open_seconds_{options.large}": round(seconds, 2),
            f"open_cpu_seconds_{options.large}": round(cpu_seconds, 2),
            f"open_megabytes_{options.large}": round(megabytes),
        }
        print(f"{options.large:,} shards taken up in {seconds:.2f} s ({cpu_seconds:.2f} s of CPU), {megabytes:,.0f} MB")
    found["dispatch_growth_1000_workers"] = round(found["loop_ms_1000_workers"] / found["loop_ms_10_workers"], 2)
    print(f"growth from 10 to 1,000 workers: {found['dispatch_growth_1000_workers']}")
    if options.json:
        print(json.dumps(found))


@dataclass(frozen=True)
class SyntheticTask:
    record: RunRecord
    shard: int
    attempt: str


@dataclass(frozen=True, kw_only=True)
class SyntheticPlan(RunPlan):
    """Of a run that was not planned from text."""

    @property
    def model_to_register(self) -> None:
        return None

    @property
    def flops_per_token(self) -> float:
        return 1.0

    def task(self, shard: int, attempt: str) -> Any:
        return SyntheticTask(self.record, shard, attempt)


class SyntheticPreparer:
    """Plans the run of so many shards; creates, opens and folds it in the bucket as usual."""

    def __init__(self, bucket: Bucket, shards: int) -> None:
        self._bucket, self._record = bucket, record_of(shards)

    def plan(self, request: CaptureSpecification, stop: threading.Event) -> RunPlan:  # noqa: ARG002
        return SyntheticPlan(record=self._record, sae_paths={}, saes=(), bytes_by_product={})

    def begin(self, plan: RunPlan, request: CaptureSpecification, queued: Queued) -> Snapshot:  # noqa: ARG002
        create_run(self._bucket, plan.record)
        return open_run(self._bucket, plan.record.run)

    def unwant(self, run: str) -> None:
        pass

    def give_up(self, run: str) -> CaptureProgress | None:  # noqa: ARG002
        return None

    def wanted(self) -> list[tuple[CaptureSpecification, Queued]]:
        return []

    def opened(self, run: str) -> Snapshot | None:  # noqa: ARG002
        return None

    def fold(self, run: str) -> None:
        fold_commits(open_run(self._bucket, run))


class SyntheticWorker:
    """Commits a shard and waits as long as a capture takes."""

    def __init__(self, bucket: Bucket, seconds: float) -> None:
        self._bucket, self._seconds = bucket, seconds
        self._over = asyncio.Event()

    async def ready(self) -> str:
        return "cpu"

    async def ended(self) -> None:
        await self._over.wait()

    def end(self) -> None:
        self._over.set()

    async def capture(self, task: Any) -> ShardReport:
        await asyncio.sleep(self._seconds)
        await asyncio.to_thread(self._commit, task)
        return ShardReport(won=True, tokens=TOKENS, bytes=1 << 24, device_seconds=self._seconds)

    async def interrupt(self, attempt: str) -> None:
        pass

    async def flops(self) -> float:
        return 1e12

    def _commit(self, task: SyntheticTask) -> None:
        commit = commit_of(task.record, task.shard)
        self._bucket.put_if_absent(commit_key(task.record.run, task.shard), commit.to_json())


async def dispatched(bucket: Bucket, workers: int, shards: int) -> tuple[float, float]:
    """Milliseconds of the loop's CPU for each shard, and shards a second."""
    limits = CoordinatorLimits()
    captures = Coordinator(
        SyntheticPreparer(bucket, shards),
        lambda: SyntheticWorker(bucket, SECONDS_A_SHARD[workers]),
        limits,
        Merging(bucket, NoWriter(), MergeLimits()),
        workers,
    )
    began, cpu_began = time.perf_counter(), time.thread_time()
    run = await captures.submit(CaptureSpecification(run="run"))
    version, last = -1, CaptureProgress(run, "running")
    while not last.ended:
        version, last = await captures.progress_after(run, version)
    seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - cpu_began
    if last.state != "complete" or last.shards_committed != shards:
        raise RuntimeError(f"the capture is {last}")
    return 1000 * cpu_seconds / shards, shards / seconds


class NoWriter:
    """The runs have no features, so nothing is merged."""

    async def write(self, merge: Any, number: int) -> Any:
        raise NotImplementedError


def build(bucket: Bucket, shards: int) -> None:
    """A run of checkpoints alone, of the largest blocks that fit."""
    record = record_of(shards)
    create_run(bucket, record)
    like = [commit_of(record, shard) for shard in range(1000)]
    repeated = [(commit.tokens, commit.to_json()) for commit in like]
    summary = Summary.of(like[0])
    for block in [*largest_blocks(shards), range(shards - shards % BLOCKS[0], shards)]:
        if block:
            held: Any = [RepeatedCommit(record, shard, *repeated[shard % 1000]) for shard in block]
            whole = replace(summary, tokens_by_class={"text": TOKENS * len(block), "bos": 0, "special": 0, "sink": 0})
            bucket.put(checkpoint_key("run", block), encoded_checkpoint(held, whole))


def largest_blocks(shards: int) -> list[range]:
    found: list[range] = []
    for block in sorted(aligned_blocks(shards, BLOCKS), key=len, reverse=True):
        if not any(block.start >= other.start and block.stop <= other.stop for other in found):
            found.append(block)
    return found


class RepeatedCommit:
    """What a checkpoint takes of a commit."""

    def __init__(self, record: RunRecord, shard: int, tokens: int, data: bytes) -> None:
        self.run, self.specification_sha256 = record.run, record.specification_sha256
        self.shard, self.tokens, self._data = shard, tokens, data

    def to_json(self) -> bytes:
        return self._data


def taken_up(bucket: Bucket) -> tuple[float, float, float]:
    """Seconds, seconds of CPU, and the megabytes by which the largest memory of this process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu_began = time.perf_counter(), time.process_time()
    snapshot = open_run(bucket, "run")
    capture = CaptureState.of(snapshot)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    if capture.pending or capture.shards_committed != snapshot.record.shards_total:
        raise RuntimeError("the run is not what was built")
    return seconds, cpu_seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def commit_of(record: RunRecord, shard: int) -> Commit:
    classes = {"text": TOKENS, "bos": 0, "special": 0, "sink": 0}
    of_run = "run", shard, f"{shard:012x}", record.specification_sha256
    objects: Mapping[str, Any] = {}
    return Commit(*of_run, SEQUENCES, classes, objects, {}, {}, "sdpa", "cuda", "0")


def record_of(shards: int) -> RunRecord:
    stored: dict[str, Any] = {
        "sequences_per_shard": SEQUENCES,
        "sequences_per_batch": 8,
        "dense_sites": ("resid_post.0",),
    }
    return synthetic_record(
        "run", sequences=SEQUENCES * shards, sequence_tokens=TOKENS // SEQUENCES, d_model=768, **stored
    )


if __name__ == "__main__":
    main()
