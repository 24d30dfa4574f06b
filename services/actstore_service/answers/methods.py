"""What the service answers: every method of the contract, made from its descriptors, and gRPC's standard services."""

from collections.abc import Awaitable, Callable, Mapping

from actstore_api.v1 import service_pb2
from actstore_api.verbs import VERBS, Verb
from actstore_service.access import Access
from actstore_service.answers.forwarded import Forwarded
from actstore_service.answers.information import Information
from actstore_service.answers.questions import Questions
from actstore_service.answers.standard import Health, Reflection
from actstore_service.answers.stored import Stored
from actstore_service.calls.admission import Admission
from actstore_service.calls.call import Call
from actstore_service.calls.classes import INFORMATION, class_of
from actstore_service.calls.opening import Opening
from actstore_service.calls.outbox import Outbox
from actstore_service.calls.pipeline import Method
from actstore_service.calls.steps import Steps
from actstore_service.gateway import Gateway
from actstore_service.metrics import Metrics
from actstore_service.settings import Settings
from actstore_service.sweeps import counted
from actstore_storage.answers import Store
from actstore_storage.answers.kept import KeptRuns
from actstore_storage.bucket import Bucket
from actstore_storage.parquet.row_cache import RowCache

SERVICES = tuple(service.full_name for service in service_pb2.DESCRIPTOR.services_by_name.values())


class Answers:
    """The methods of one service process. The bucket answers them, or the workers do."""

    def __init__(self, bucket: Bucket, settings: Settings, access: Access, gateway: Gateway, metrics: Metrics) -> None:
        limits = settings.limits
        opening = Opening(limits.message_seconds, limits.unread_calls)
        admission = Admission(limits)
        steps = Steps(admission, opening, Outbox(limits, admission.bytes))
        questions = Questions(access)
        store = Store(bucket, RowCache(settings.held_row_bytes), KeptRuns(settings.held_run_bytes))
        metrics.look_at(admission, store)
        self._stored = Stored(store, questions, steps, limits)
        watches = {"RunSweep": lambda updates: counted(updates, metrics.sweeps)}
        self._forwarded = Forwarded(
            gateway, questions, steps, watches, {"CheckSae": metrics.sae_checked}, limits.parsing_threads
        )
        self._information = Information(gateway, questions, steps, limits)
        self._health = Health(steps, _serving(gateway))
        standard = (*self._health.methods(settings.open_health), Reflection(steps, SERVICES).method())
        self.methods = self._contract() | {method.path: method for method in standard}

    async def stop_serving(self) -> None:
        self._health.stop_serving()

    def close(self) -> None:
        self._stored.close()
        self._forwarded.close()

    def _contract(self) -> dict[str, Method]:
        return {verb.path: self._method(verb) for verb in VERBS.values()}

    def _method(self, verb: Verb) -> Method:
        return Method(verb.path, class_of(verb), self._answers(verb), verb.streams)

    def _answers(self, verb: Verb) -> Callable[[Call], Awaitable[bytes | None]]:
        if verb.name == INFORMATION:
            return self._information.answers(verb)
        return self._forwarded.answers(verb) if verb.forwarded else self._stored.answers(verb)


def _serving(gateway: Gateway) -> Mapping[str, bool]:
    """Which services are served, by name: without workers, those that need them are not."""
    return {"": True} | {name: gateway.configured or name not in forwarded_services() for name in SERVICES}


def forwarded_services() -> frozenset[str]:
    """The services that need workers."""
    return frozenset(verb.service for verb in VERBS.values() if verb.forwarded)
