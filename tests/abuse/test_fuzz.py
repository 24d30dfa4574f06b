"""Any decodable question to a service process over a stored run, of every method that a bucket answers.

`make fuzz` asks a million of them; ACTSTORE_FUZZ_REQUESTS is how many are asked in all.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from actstore_api.codec import message_of
from actstore_api.verbs import VERBS, Verb
from actstore_storage.bucket.opening import open_bucket
from tests.abuse.any_messages import any_request
from tests.abuse.judging import FUZZ, check
from tests.abuse.service_process import ServiceProcess, service_process
from tests.stored_run import write_stored_run

STORED = [verb for verb in VERBS.values() if not verb.forwarded]
EACH = int(os.environ.get("ACTSTORE_FUZZ_REQUESTS", 150 * len(STORED))) // len(STORED)
# Beside what the first questions load, which stays.
GROWTH_BYTES = 100 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "store").mkdir()
    write_stored_run(open_bucket(str(folder / "store")))
    with service_process(folder) as running:
        yield running


@pytest.mark.parametrize("verb", STORED, ids=[verb.name for verb in STORED])
def test_any_decodable_question_has_an_answer_or_a_reason(service: ServiceProcess, verb: Verb) -> None:
    before: list[int] = []

    @settings(FUZZ, max_examples=EACH)
    @given(any_request(message_of(verb.question).DESCRIPTOR))
    def ask(request: bytes) -> None:
        check(service.ask(verb, request), (str(service.folder),))
        if not before:
            before.append(service.memory_bytes)

    ask()
    assert service.memory_bytes - before[0] < GROWTH_BYTES
    assert b"Traceback" not in service.log.read_bytes()
