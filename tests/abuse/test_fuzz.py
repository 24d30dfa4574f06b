"""Any decodable question to a service process over a stored run, of every method that a bucket answers.

`make fuzz` asks a million of them; ACTSTORE_FUZZ_REQUESTS is how many are asked in all.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status
from hypothesis import given, settings

from actstore_api.codec import message_of
from actstore_api.reasons import from_status
from actstore_api.verbs import VERBS, Verb
from actstore_storage.bucket.opening import open_bucket
from tests.abuse.any_messages import any_request
from tests.abuse.judging import FUZZ, SECONDS, Outcome, check, memory_bytes
from tests.service.process import COMMAND, environment
from tests.stored_run import write_stored_run

STORED = [verb for verb in VERBS.values() if not verb.forwarded]
EACH = int(os.environ.get("ACTSTORE_FUZZ_REQUESTS", 200 * len(STORED))) // len(STORED)
# Beside what the first questions load, which stays.
GROWTH_BYTES = 100 << 20


@dataclass(frozen=True)
class Running:
    """A service process, and a channel to it."""

    pid: int
    channel: grpc.Channel
    folder: Path
    log: Path

    def ask(self, verb: Verb, request: bytes) -> Outcome:
        call = self.channel.unary_stream if verb.streams else self.channel.unary_unary
        try:
            answer = call(verb.path)(request, timeout=SECONDS)
            for _ in answer if verb.streams else ():
                pass
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            return Outcome(error.code(), error.details() or "", status and from_status(status))
        return Outcome(grpc.StatusCode.OK)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "store").mkdir()
    write_stored_run(open_bucket(str(folder / "store")))
    variables = environment(ACTSTORE_STORE=str(folder / "store"))
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(COMMAND, env=variables, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        address = __import__("json").loads(process.stdout.readline())["address"]
        with grpc.insecure_channel(address) as channel:
            yield Running(process.pid, channel, folder, folder / "log")
        process.terminate()


@pytest.mark.parametrize("verb", STORED, ids=[verb.name for verb in STORED])
def test_any_decodable_question_has_an_answer_or_a_reason(service: Running, verb: Verb) -> None:
    before: list[int] = []

    @settings(FUZZ, max_examples=EACH)
    @given(any_request(message_of(verb.question).DESCRIPTOR))
    def ask(request: bytes) -> None:
        check(service.ask(verb, request), (str(service.folder),))
        if not before:
            before.append(memory_bytes(service.pid))

    ask()
    assert memory_bytes(service.pid) - before[0] < GROWTH_BYTES
    assert b"Traceback" not in service.log.read_bytes()
