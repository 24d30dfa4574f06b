"""Classes of calls. Each has its own threads and its own waiting room, so that one full class never delays another."""

from enum import StrEnum

from actstore_api.verbs import Verb

_CATALOG = "CatalogService"
# The one method that neither the bucket nor the workers answer.
INFORMATION = "GetServiceInfo"


class CallClass(StrEnum):
    CATALOG = "catalog"
    """What is there: runs, models, SAEs. Answered in milliseconds."""
    READS = "reads"
    """Questions about stored data with a single answer."""
    SLOW = "slow"
    """Those of them that take long, which is known once they are read: then they give their place in `reads` back."""
    STREAMS = "streams"
    """Stored rows, message by message."""
    FORWARDED = "forwarded"
    """What the workers answer."""
    STANDARD = "standard"
    """What needs no thread: gRPC's own services, health and reflection, and what the service is."""


def class_of(verb: Verb) -> CallClass:
    """A fact of the verb: whoever calls, and whatever it asks for."""
    if verb.name == INFORMATION:
        return CallClass.STANDARD
    if verb.forwarded:
        return CallClass.FORWARDED
    if verb.streams:
        return CallClass.STREAMS
    return CallClass.CATALOG if verb.service.endswith(f".{_CATALOG}") else CallClass.READS
