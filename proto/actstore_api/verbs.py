"""The verbs of the contract by name: what is asked, what is answered, and how it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from actstore_api.records import activation, capture, catalog, feature, model, norm, patching, sae, terms
from actstore_api.v1 import options_pb2, service_pb2

NOUNS = (activation, capture, catalog, feature, model, norm, patching, sae, terms)
# Of verbs that name no other.
DEADLINE_SECONDS = 60


@dataclass(frozen=True)
class Verb:
    """One call: the record that asks has its name, and the one that answers its name and `Answer`.

    `service` is the full name of its service, `path` gRPC's name of the verb. The answer of one that `streams` comes in
    parts, without a deadline. One that is `forwarded` is answered by the workers, one that is `repeatable` may be asked
    again where no answer came.
    """

    name: str
    service: str
    path: str
    question: type[Any]
    answer: type[Any]
    streams: bool
    forwarded: bool
    repeatable: bool
    deadline_seconds: int | None


def verb_of(question: object) -> Verb:
    """The verb that asks this question."""
    return VERBS[type(question).__name__]


def _verb(method: MethodDescriptor) -> Verb:
    records = {name: found for noun in NOUNS for name, found in vars(noun).items()}
    service = method.containing_service
    seconds = _option(method, options_pb2.deadline_seconds) or DEADLINE_SECONDS
    return Verb(
        name=method.name,
        service=service.full_name,
        path=f"/{service.full_name}/{method.name}",
        question=records[method.name],
        answer=records[f"{method.name}Answer"],
        streams=method.server_streaming,
        forwarded=_option(service, options_pb2.forwarded),
        repeatable=method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS,
        deadline_seconds=None if method.server_streaming else seconds,
    )


def _option(of: MethodDescriptor | ServiceDescriptor, option: Any) -> Any:
    options: Any = of.GetOptions()
    return options.Extensions[option]


VERBS: Mapping[str, Verb] = {
    method.name: _verb(method)
    for service in service_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
