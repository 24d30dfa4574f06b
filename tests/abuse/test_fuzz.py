"""Extreme and random questions to a service process over a stored run, of every method that a bucket answers.

`make fuzz` asks a million random ones; ACTSTORE_FUZZ_REQUESTS is how many are asked in all.
"""

from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given, settings

from actstore_api.codec import message_of
from actstore_api.verbs import VERBS, Verb
from actstore_storage.bucket.opening import open_bucket
from tests.abuse.any_messages import any_request
from tests.abuse.changed_requests import faults
from tests.abuse.judging import EACH, FUZZ, check
from tests.abuse.service_process import ServiceProcess, service_process
from tests.abuse.valid_requests import valid_request
from tests.stored_run import write_stored_run

STORED = [verb for verb in VERBS.values() if not verb.forwarded]
# Beside what the first questions load, which stays.
GROWTH_BYTES = 100 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "store").mkdir()
    bucket = open_bucket(str(folder / "store"))
    write_stored_run(bucket)
    for name, revision in (("step-1", "step1"), ("step-2", "step2")):
        write_stored_run(bucket, name, revision=revision)
    with service_process(folder) as running:
        yield running


@pytest.mark.parametrize("verb", STORED, ids=[verb.name for verb in STORED])
def test_one_extreme_field_has_an_answer_or_its_own_refusal(service: ServiceProcess, verb: Verb) -> None:
    valid = valid_request(verb)
    assert service.ask(verb, valid.SerializeToString()).code is grpc.StatusCode.OK
    found = faults(valid, lambda request: service.ask(verb, request), (str(service.folder),))
    assert not found, "\n".join(found)


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
