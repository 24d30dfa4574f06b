"""Asking a bucket by itself, without a service: the one file of the client that opens one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from actstore._answer import Verdict
from actstore._errors import ActstoreError, error_of, refused
from actstore._transport.access import S3Access
from actstore._transport.base import Backend, Rows
from actstore_api.bounds import check_bounds
from actstore_api.records.information import ServiceInfo
from actstore_api.records.terms import Failure
from actstore_api.shape import Unreadable
from actstore_storage import errors
from actstore_storage.answers import Store, answer, is_stored, rows
from actstore_storage.answers.kept import KeptRuns
from actstore_storage.bucket import access, opening
from actstore_storage.parquet.row_cache import RowCache
from actstore_storage.rows.export import export_saelens, export_safetensors
from actstore_storage.runs.opening import check_store, open_run
from actstore_storage.upkeep import fsck, removal

# What a client keeps in memory for its next questions: opened runs, and decoded rows.
HELD_RUN_BYTES = 64 << 20
HELD_ROW_BYTES = 64 << 20


class BucketBackend(Backend):
    def __init__(self, address: str, s3: S3Access | None) -> None:
        reached = access.S3Access(**asdict(s3)) if s3 else None
        with in_our_words():
            bucket = opening.open_bucket(address, reached)
        self.address = bucket.address
        self._checked = False
        self._opened = Store(bucket, RowCache(HELD_ROW_BYTES), KeptRuns(HELD_RUN_BYTES))

    @property
    def _store(self) -> Store:
        """Checked at the first question, because every answer about a mistyped folder would be empty."""
        if not self._checked:
            check_store(self._opened.bucket)
            self._checked = True
        return self._opened

    def close(self) -> None:
        """Nothing is held open between calls."""

    def check_workers(self) -> None:
        raise self._needs_service()

    def service_info(self) -> ServiceInfo:
        raise self._needs_service()

    def ask(self, question: object) -> Any:
        if not is_stored(question):
            raise self._needs_service()
        with in_our_words():
            check_bounds(question)
            return answer(self._store, question)

    def rows(self, question: object) -> Rows:
        with in_our_words():
            check_bounds(question)
            provenance, batches = rows(self._store, question)
            return pa.Table.from_batches(list(batches)), provenance

    def listen(self, question: object) -> Iterator[Any]:  # noqa: ARG002
        raise self._needs_service()

    def check_runs(self, run: str | None, quick: bool, remove_orphans: bool) -> Verdict:
        with in_our_words():
            found = fsck.check_runs(self._store.bucket, run, quick=quick, remove_orphans=remove_orphans)
        findings = pa.table({name: [getattr(one, name) for one in found.findings] for name in ("kind", "key", "what")})
        return Verdict(
            table=findings,
            sound=found.sound,
            runs=found.runs,
            shards=found.shards,
            objects=found.objects,
            bytes=found.bytes,
        )

    def remove_run(self, run: str, force: bool) -> int:
        with in_our_words():
            return removal.remove_run(self._store.bucket, run, force=force)

    def export(self, run: str, site: str, layout: str, folder: Path) -> int:
        """How many files, or contexts, were written."""
        with in_our_words():
            snapshot = open_run(self._store.bucket, run)
            if layout == "saelens":
                return export_saelens(snapshot, site, folder)
            return len(export_safetensors(snapshot, site, folder))

    def _needs_service(self) -> ActstoreError:
        message = f"this is a question to the workers of a service, and {self.address} is a bucket without a service"
        return refused(message, "address", self.address, "host:port of a service", "NEEDS_SERVICE")


@contextmanager
def in_our_words() -> Iterator[None]:
    """Errors of the storage library, and of the contract, become the client's."""
    try:
        yield
    except Unreadable as error:
        raise refused(str(error), error.field, error.value, error.allowed, error.reason) from None
    except errors.ActstoreError as error:
        raise error_of(Failure(error.reason, error.message, error.details)) from None
