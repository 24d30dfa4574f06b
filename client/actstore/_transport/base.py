"""Whom the client asks: a service over gRPC, or a bucket by itself. The same questions, the same answers, the same
errors; both are records of actstore_api.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

import pyarrow as pa

from actstore._answer import Verdict
from actstore._errors import ActstoreError, refused
from actstore._transport.access import Retries
from actstore_api.records.information import ServiceInfo
from actstore_api.records.terms import Provenance

Rows = tuple[pa.Table, Provenance]


class Backend(ABC):
    """Every method raises errors of actstore._errors only.

    An open connection has no copy: what holds one, such as a Lab or a Run, is copied with the same connection, and
    cannot be pickled.
    """

    address: str
    retries: Retries = Retries()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"an open connection to {self.address} cannot be pickled: pickle answers, which are plain data, or the "
            "name of a run, and open it again with actstore.connect(...).run(name)"
        )

    @abstractmethod
    def ask(self, question: object) -> Any:
        """The answer to a question that has one answer: a question of class `X` gets an `XAnswer`."""

    @abstractmethod
    def rows(self, question: object) -> Rows:
        """All rows that a question is about, and where they come from."""

    @abstractmethod
    def listen(self, question: object) -> Iterator[Any]:
        """The answers to a question that is answered again and again, as they come."""

    @abstractmethod
    def check_workers(self) -> None:
        """Returns where the workers answer. Errors: Unavailable, Denied."""

    @abstractmethod
    def service_info(self) -> ServiceInfo:
        """What the service is. Errors: BadRequest for one that is too old to say, and for a bucket."""

    @abstractmethod
    def close(self) -> None: ...

    def check_runs(self, run: str | None, quick: bool, remove_orphans: bool) -> Verdict:  # noqa: ARG002
        raise needs_bucket("checking a store", self.address)

    def remove_run(self, run: str, force: bool) -> int:  # noqa: ARG002
        raise needs_bucket("removing a run", self.address)

    def export(self, run: str, site: str, layout: str, folder: Path) -> int:  # noqa: ARG002
        raise needs_bucket("exporting a run", self.address)


def needs_bucket(call: str, address: str) -> ActstoreError:
    """The error for calls that read or remove a store's own objects, which need the store's keys."""
    allowed = "./folder, or s3://bucket/prefix with its keys"
    return refused(f"{call} needs a lab on the bucket itself, and {address} is a service", "address", address, allowed)
