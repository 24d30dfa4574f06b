"""How much of a dataset's files is read into memory, and for how long."""

import threading
from dataclasses import dataclass, field

from actstore_storage.errors import ActstoreError, BadRequest
from actstore_storage.settings.checks import check_positive
from actstore_worker.files.strict_json import count_values

# Of reading that nobody stops.
NEVER = threading.Event()


@dataclass(frozen=True)
class DatasetLimits:
    # Bytes of a line or of an array of JSON, which are read as a whole. A file with more is refused.
    json_bytes: int = 256 * 2**20
    # Values of a line or of an array of JSON: each takes up to 64 bytes of memory, for 3 bytes of the file. A file with
    # more is refused.
    json_values: int = 20 * 2**20
    # Characters of one document. A tokenizer takes some 200 bytes for each. A longer document is refused.
    document_characters: int = 8 * 2**20
    # Token ids of one document. A document with more is refused.
    document_tokens: int = 16 * 2**20
    # Parts of Parquet and Arrow files that become larger than `expanded_bytes` may become this many times larger than
    # they are stored. Text becomes 3 to 20 times larger. A file that becomes larger still is refused.
    expansion: int = 200
    # Bytes that a part of a Parquet or Arrow file may become, however small it is stored. Beyond it, `expansion`
    # counts.
    expanded_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True)
class Reading:
    """One reading of a dataset: its limits, and who waits for it."""

    limits: DatasetLimits = field(default_factory=DatasetLimits)
    stop: threading.Event = NEVER

    def check(self) -> None:
        """Raises CANCELLED once nobody waits any more."""
        if self.stop.is_set():
            raise ActstoreError("the caller no longer waits for this dataset", reason="CANCELLED")

    def check_json(self, file: str, size: int) -> None:
        """Refuses more bytes than may be read as a whole: BadRequest LIMIT_EXCEEDED."""
        _check(f"{file} has a JSON value of", size, self.limits.json_bytes, "bytes")

    def check_json_values(self, file: str, data: bytes) -> None:
        """Refuses JSON of too many values, before it is parsed. Marks in its texts count, too."""
        _check(f"{file} has a JSON value of", count_values(data), self.limits.json_values, "values")

    def check_document(self, place: str, characters: int) -> None:
        """Refuses a document that is too long to be tokenized as a whole."""
        _check(f"{place} has a document of", characters, self.limits.document_characters, "characters")

    def check_tokens(self, place: str, tokens: int) -> None:
        """Refuses a document of too many token ids."""
        _check(f"{place} has a document of", tokens, self.limits.document_tokens, "token ids")

    def check_expansion(self, place: str, stored: int, expanded: int) -> None:
        """Refuses a part of a file that would become far larger than it is, as only made-up data does."""
        limits = self.limits
        if expanded > max(limits.expanded_bytes, limits.expansion * stored):
            raise BadRequest(
                f"{place} has {stored} bytes that become {expanded}, more than {limits.expansion} times as many",
                reason="LIMIT_EXCEEDED",
                field="dataset",
                value=f"{expanded} bytes",
                allowed=f"at most {max(limits.expanded_bytes, limits.expansion * stored)} bytes",
            )


def _check(subject: str, count: int, limit: int, unit: str) -> None:
    if count > limit:
        raise BadRequest(
            f"{subject} more than {limit} {unit}, which is the limit",
            reason="LIMIT_EXCEEDED",
            field="dataset",
            value=f"at least {count} {unit}",
            allowed=f"at most {limit} {unit}",
        )
