"""The methods of the contract by name, with their question, answer and options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from actstore_api.records import activation, capture, catalog, feature, information, model, norm, patching, sae, terms
from actstore_api.v1 import options_pb2, service_pb2

NOUNS = (activation, capture, catalog, feature, information, model, norm, patching, sae, terms)
# For methods without another deadline.
DEADLINE_SECONDS = 60


@dataclass(frozen=True)
class Verb:
    """One method: its question is the record with its name, its answer the record with its name and `Answer`.

    `service` is the full name of its service, `path` gRPC's name of the method. If it `streams`, the answer comes in
    parts, without a deadline. If it is `forwarded`, the workers answer it. If it is `repeatable`, it may be retried if
    no answer arrives.
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
    """The method for this question."""
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
