"""Merges the feature indexes of runs while captures and readers continue.

The bucket says what is due, and a few parts are written at a time. This module uses neither Ray nor models: the process
that writes a part imports neither.
"""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.features.segments import Part
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep.merging import Merge, abandon_merge, finish_merge, merge_part, plan_merges, runs_to_merge
from actstore_worker.capture.limits import MergeLimits

_log = logging.getLogger(__name__)


class PartWriter(Protocol):
    async def write(self, merge: Merge, number: int) -> Part:
        """Writes this part of the merge, in some process. If it fails, the merge is given up until it is due again."""


@dataclass
class _Asked:
    """A run that is being merged; `again` if another merge was requested since its merges were planned."""

    again: bool = True


class Merging:
    """Merges of one coordinator. All methods run in its event loop. Two coordinators may merge the same run, because
    only one manifest succeeds.
    """

    def __init__(self, bucket: Bucket, writer: PartWriter, limits: MergeLimits) -> None:
        self._bucket, self._writer, self._limits = bucket, writer, limits
        self._places = asyncio.Semaphore(limits.parts)
        self._asked: dict[str, _Asked] = {}

    async def merge(self, run: str) -> None:
        """Runs all merges that are due. Returns at once if the run is being merged already; that checks once more at
        its end.
        """
        if run in self._asked:
            self._asked[run].again = True
            return
        asked = self._asked[run] = _Asked()
        try:
            while asked.again:
                asked.again = False
                await self._merge_due(run)
        # Readers use the shards that no segment covers, and the next commits or the next coordinator try again.
        except ActstoreError as error:
            _log.warning("the feature index of %s could not be merged: %s", run, error.for_log)
        except Exception:  # noqa: BLE001  a part's fault must not end the coordinator
            _log.exception("the feature index of %s could not be merged", run)
        finally:
            del self._asked[run]

    async def resume(self) -> None:
        """Merges complete runs whose merges another coordinator left."""
        try:
            left = await asyncio.to_thread(runs_to_merge, self._bucket, self._limits.runs_resumed)
        except ActstoreError as error:
            _log.warning("the list of runs whose indexes need merging cannot be read: %s", error.for_log)
            return
        for run in left:
            await self.merge(run)

    async def _merge_due(self, run: str) -> None:
        """Smaller merges come first, because larger segments are made of them."""
        for merge in await asyncio.to_thread(_due, self._bucket, run):
            parts = await self._parts(merge)
            if await asyncio.to_thread(finish_merge, self._bucket, merge, parts):
                _log.info(
                    "merged the feature indexes of shards %d to %d of %s", merge.first_shard, merge.end_shard - 1, run
                )

    async def _parts(self, merge: Merge) -> Sequence[Part]:
        """Writes parts in order. After a failure no further part is begun, and the parts of this merge are removed if
        possible.
        """
        given_up = asyncio.Event()
        numbers = range(len(merge.features))
        written = await asyncio.gather(*(self._part(merge, i, given_up) for i in numbers), return_exceptions=True)
        parts = [one for one in written if isinstance(one, Part)]
        if len(parts) < len(numbers):
            await asyncio.to_thread(abandon_merge, self._bucket, merge)
            raise next(one for one in written if isinstance(one, BaseException))
        return parts

    async def _part(self, merge: Merge, number: int, given_up: asyncio.Event) -> Part | None:
        async with self._places:
            if given_up.is_set():
                return None
            try:
                return await self._writer.write(merge, number)
            except BaseException:
                given_up.set()
                raise


def write_part(store: str, s3: S3Access | None, merge: Merge, number: int) -> Part:
    """Runs in a process that has only the address of the store."""
    return merge_part(_opened(store, s3), merge, number)


@lru_cache(1)
def _opened(store: str, s3: S3Access | None) -> Bucket:
    """Cached, because data read from a merge's sources is cached with it."""
    return open_bucket(store, s3)


def _due(bucket: Bucket, run: str) -> list[Merge]:
    snapshot, attempt = open_run(bucket, run), uuid.uuid4().hex[:12]
    return [merge for sae in snapshot.record.specification.saes for merge in plan_merges(snapshot, sae.name, attempt)]
