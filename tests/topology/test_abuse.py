"""Any decodable question to real workers, of every method that the service forwards.

One for twenty that the same methods are asked without Ray, where a question costs a fraction of the time.
"""

import grpc
import pytest
from grpc_status import rpc_status
from hypothesis import given, settings

from actstore_api.codec import message_of
from actstore_api.reasons import from_status
from actstore_api.verbs import VERBS, Verb
from tests.abuse.any_messages import STORED_NAMES, any_request
from tests.abuse.judging import EACH, FUZZ, SECONDS, Outcome, check
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack
FORWARDED = [verb for verb in VERBS.values() if verb.forwarded]
EACH_OF_STACK = EACH // 20 + 5
NAMES = {
    **STORED_NAMES,
    "ModelReference.name": ("tiny",),
    "DatasetReference.name": ("words.jsonl",),
    **dict.fromkeys(("sae", "saes"), ("small-sae",)),
    "run": ("fuzzed",),
}


@pytest.mark.parametrize("verb", FORWARDED, ids=[verb.name for verb in FORWARDED])
def test_any_decodable_question_has_an_answer_or_a_reason(
    workers: WorkerProcess, channel: grpc.Channel, verb: Verb
) -> None:
    method = (channel.unary_stream if verb.streams else channel.unary_unary)(verb.path)

    @settings(FUZZ, max_examples=EACH_OF_STACK)
    @given(any_request(message_of(verb.question).DESCRIPTOR, NAMES))
    def ask(request: bytes) -> None:
        try:
            answer = method(request, timeout=4 * SECONDS, metadata=workers.metadata())
            for _ in answer if verb.streams else ():
                pass
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            check(Outcome(error.code(), error.details() or "", status and from_status(status)))

    ask()
