"""A service that answered large questions is afterwards as small as before."""

import ctypes
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from actstore_api.v1 import activation_pb2, feature_pb2, norm_pb2
from actstore_api.v1.common_pb2 import Range
from actstore_api.verbs import VERBS
from actstore_service.memory import MemoryKeeper
from actstore_storage.bucket.opening import open_bucket
from tests.abuse.service_process import ServiceProcess, service_process
from tests.storage.random_run import SAE, make_run, write_run
from tests.waiting import PATIENCE_SECONDS

MEBIBYTE = 1 << 20
ARENA_BYTES = 64 * MEBIBYTE
# Rounds of eight at once, of which each takes some tens of megabytes while it is answered.
AT_ONCE, ROUNDS = 8, 2
SHARE = 1.2
_SAMPLE = {"run": "run", "sae": SAE, "method": feature_pb2.SAMPLE_METHOD_POSITIONS}
LARGE: list[tuple[str, Any]] = [
    (
        "SampleExamples",
        feature_pb2.SampleExamplesRequest(features=range(16), k=60, tokens_before=500, tokens_after=500, **_SAMPLE),
    ),
    ("ReadActivations", activation_pb2.ReadActivationsRequest(run="run", sites=["resid_post.3"])),
    ("ReadTokens", activation_pb2.ReadTokensRequest(run="run")),
    ("FindFeatures", feature_pb2.FindFeaturesRequest(run="run", sae=SAE, with_token_r2=True)),
]
SMALL: list[tuple[str, Any]] = [
    ("SampleExamples", feature_pb2.SampleExamplesRequest(features=[1], k=5, **_SAMPLE)),
    (
        "ReadActivations",
        activation_pb2.ReadActivationsRequest(
            run="run", sites=["resid_post.3"], where=activation_pb2.TokenSelection(sequences=Range(first=0, end=3))
        ),
    ),
    ("GetNormProfile", norm_pb2.GetNormProfileRequest(runs=["run"])),
]


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "store").mkdir()
    made = make_run(3, sequences=240, longest=128, d_model=256, d_sae=20, sequences_per_shard=80)
    write_run(open_bucket(str(folder / "store")), made, batch_sequences=80)
    # The defaults, but for how soon memory is given back. The cache of rows holds them all before it is measured.
    with service_process(folder, ACTSTORE_LIMITS_MEMORY_SECONDS="0.2") as running:
        yield running


def ask(service: ServiceProcess, asked: tuple[str, Any]) -> grpc.StatusCode:
    name, request = asked
    return service.ask(VERBS[name], request.SerializeToString()).code


def settled(service: ServiceProcess) -> int:
    """The memory once it does not become less any more."""
    found = [service.memory_bytes]
    while len(found) < 2 or found[-1] < found[-2]:
        time.sleep(1.0)
        found.append(service.memory_bytes)
    return found[-1]


def thread_arenas(pid: int) -> int:
    """How many arenas a process has beside the first one. glibc reserves 64 MiB for each, at a multiple of 64 MiB: a
    part that is used, and a part that is not yet.
    """
    lines = [line.split()[:2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    spans = [(*(int(end, 16) for end in span.split("-")), kind) for span, kind in lines]
    return sum(
        start % ARENA_BYTES == 0 and rest_end - start == ARENA_BYTES and (kind, rest) == ("rw-p", "---p")
        for (start, _, kind), (_, rest_end, rest) in itertools.pairwise(spans)
    )


def test_memory_is_given_back_after_large_questions(service: ServiceProcess) -> None:
    assert {ask(service, each) for each in SMALL + LARGE} == {grpc.StatusCode.OK}
    before = settled(service)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(ROUNDS):
            assert set(pool.map(lambda each: ask(service, each), 2 * LARGE)) == {grpc.StatusCode.OK}
    end = time.monotonic() + PATIENCE_SECONDS
    while (now := service.memory_bytes) > SHARE * before:
        assert time.monotonic() < end, f"{before // MEBIBYTE} MiB became {now // MEBIBYTE}"
        time.sleep(0.1)
    # With several, much of what is free stays in them: 0040-bounds-before-work.md has measurements. One is made by a
    # library's thread while it is imported, before the service says that all threads share an arena.
    assert thread_arenas(service.pid) <= 1


def test_memory_is_given_back_only_after_more_of_it_is_unused() -> None:
    sizes, given = iter([100, 109, 130, 104, 113, 114, 102]), []
    keeper = MemoryKeeper(1.0, 10, lambda: next(sizes), lambda: given.append(True))
    keeper.look()
    assert given == []
    keeper.look()  # from 130 to 104
    assert given == [True]
    keeper.look()
    assert given == [True]
    keeper.look()
    assert given == [True, True]


# A process of its own, for malloc's state is the whole process's. Pieces of 1000 bytes are malloc's, not Python's own.
LOOKED_AT_WHILE_LARGE = """
from actstore_service.memory import MemoryKeeper, resident_bytes, tune_memory
tune_memory()
keeper = MemoryKeeper(1.0, 16 << 20)
before = resident_bytes()
held = [bytes(1000) for _ in range(200_000)]
keeper.look()
large = resident_bytes()
del held
keeper.look()
print(large - before, resident_bytes() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="malloc does not say what is in use")
def test_memory_comes_back_that_was_in_use_when_it_was_looked_at() -> None:
    done = subprocess.run([sys.executable, "-c", LOOKED_AT_WHILE_LARGE], stdout=subprocess.PIPE, text=True, check=True)
    large, after = map(int, done.stdout.split())
    assert large > 190 * MEBIBYTE
    assert after < 16 * MEBIBYTE
