"""Tests at start whether a store supports exactly-once commits."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from actstore_storage.bucket import Bucket
from actstore_storage.errors import StoreError

# The folder of the objects that it writes and removes again.
PROBE = "probe"
RACERS = 8
ROUNDS = 3


def probe(bucket: Bucket) -> None:
    """Tests whether a store is safe to commit to: writes, lets several writers create one key, reads back, lists and
    deletes below PROBE; leaves nothing there.

    Raises StoreError: STORE_UNSAFE if a conditional put does not have exactly one winner whose bytes remain.
    """
    folder = f"{PROBE}/{uuid4().hex}"
    for number in range(ROUNDS):
        key = f"{folder}/{number}"
        try:
            _race(bucket, key)
            if bucket.keys(folder) != [key]:
                raise _unsafe(bucket, "an object that was just written is missing from the listing")
        finally:
            bucket.delete(key)
        if bucket.exists(key):
            raise _unsafe(bucket, "an object that was just deleted still exists")


def _race(bucket: Bucket, key: str) -> None:
    bodies = [f"racer {racer}".encode() for racer in range(RACERS)]
    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(lambda body: bucket.put_if_absent(key, body), bodies))
    if bucket.put_if_absent(key, b"late"):
        raise _unsafe(bucket, "a conditional put (If-None-Match: *) replaced an existing object")
    winners = [body for body, winner in zip(bodies, won, strict=True) if winner]
    if len(winners) != 1:
        raise _unsafe(
            bucket,
            f"{len(winners)} of {RACERS} writers that created the same object at the same time succeeded, instead of "
            "one",
        )
    if bucket.get(key) != winners[0]:
        raise _unsafe(bucket, "an object that was read back differs from what was written")


def _unsafe(bucket: Bucket, what: str) -> StoreError:
    return StoreError(
        f"{bucket.address} cannot be used as a store: {what}",
        reason="STORE_UNSAFE",
        field="store",
        value=bucket.address,
        allowed="a store that honours If-None-Match: *",
    )
