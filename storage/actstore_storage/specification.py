"""What a run is: everything that decides its content, and what was found when it began.

`Specification` is what was asked for, with every default filled in; its hash identifies the run. `RunRecord` is
`runs/<run>/run.json`, created once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from actstore_storage.errors import CorruptObject

# What is read, and what is written: a run over another's rows is of the third version, which no earlier one knows.
FORMAT_VERSION = 3
_OWN_ROWS_VERSION = 2
DTYPES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of an element


@dataclass(frozen=True)
class SaeRecord:
    """An SAE as a run uses it. `site` is the short name of the site it reads."""

    name: str
    sha256: str
    site: str
    d_sae: int


@dataclass(frozen=True)
class Positions:
    """Which tokens' rows the dense sites store; tokens, norms and features are of every token in any case.

    `kind`: all; last (of each sequence); stride (positions divisible by `stride`); fraction (each token by a hash of
    seed, sequence and position, so that a shard that is captured again chooses the same); feature (tokens where that
    feature of that SAE is active).
    """

    kind: str = "all"
    stride: int = 1
    fraction: float = 1.0
    seed: int = 0
    sae: str = ""
    feature: int = 0


@dataclass(frozen=True)
class RowFilter:
    """Keeps the rows of a table dataset whose `column` compares so with `value`, as pyarrow's filters do.

    `comparison` is one of ==, !=, <, <=, >, >=, in, not in; `value` is a JSON scalar, or a list for the last two.
    """

    column: str
    comparison: str
    value: Any


@dataclass(frozen=True)
class Specification:
    """Names are as the caller gave them; hashes are of what the workers found under them.

    Fields with a default are newer than format version 1, and a run of that version has the default.
    """

    model: str
    model_revision: str
    weights_sha256: str
    tokenizer_sha256: str
    dataset: str
    dataset_sha256: str
    text_field: str
    max_tokens: int | None
    context_length: int
    prepend_bos: bool
    dense_sites: tuple[str, ...]
    norm_sites: tuple[str, ...]
    saes: tuple[SaeRecord, ...]
    dtype: str
    sequences_per_shard: int
    sequences_per_batch: int
    # Element type of stored dense rows; empty: `dtype`, in which the model computes.
    storage_dtype: str = ""
    # A row that `storage_dtype` cannot hold: store that site of that shard in float32 (True), or refuse the shard.
    widen_on_overflow: bool = False
    # Several sequences share a row of the model's batch and do not attend to each other.
    packing: bool = False
    positions: Positions = field(default_factory=Positions)
    # The column of token ids of a dataset that is tokenised already; empty: `text_field` has text.
    tokens_field: str = ""
    row_filters: tuple[RowFilter, ...] = ()
    max_documents: int | None = None
    # A token is a sink where its norm at some resid_post exceeds the median of its sequence this many times; None: no
    # token is looked at.
    sink_ratio: float | None = None
    # The run whose rows these are: this one says the same of them, and has more SAEs. Empty: a run of its own.
    rows_of: str = ""
    # The dataset's column that says where a document comes from; empty: its file and row do.
    source_field: str = ""

    @property
    def stored_dtype(self) -> str:
        """Of dense rows, where no shard had to widen it."""
        return self.storage_dtype or self.dtype

    @property
    def sinks_above(self) -> float:
        """`sink_ratio`, and 0 where no token was looked at: sinks are told by norms at resid_post."""
        looked_at = any(site.startswith("resid_post.") for site in self.norm_sites)
        return self.sink_ratio or 0.0 if looked_at else 0.0

    @property
    def sha256(self) -> str:
        return hashlib.sha256(canonical_json(_fields(self))).hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """`runs/<run>/run.json`. Shard i holds sequences i * sequences_per_shard up to the next shard's first.

    `dense_widths`: elements in a row of each dense site; a site that is not there has `d_model`. `document_sources`:
    its shards say where their documents come from.
    """

    run: str
    specification: Specification
    specification_sha256: str
    sequences_total: int
    tokens_total: int
    layer_count: int
    d_model: int
    attention_implementation: str
    device: str
    code_version: str
    dense_widths: Mapping[str, int] = field(default_factory=dict)
    format_version: int = _OWN_ROWS_VERSION
    document_sources: bool = False

    def dense_width(self, site: str) -> int:
        return self.dense_widths.get(site, self.d_model)

    @property
    def shards_total(self) -> int:
        return -(-self.sequences_total // self.specification.sequences_per_shard)

    def shard_sequences(self, shard: int) -> range:
        size = self.specification.sequences_per_shard
        return range(shard * size, min((shard + 1) * size, self.sequences_total))

    def to_json(self) -> bytes:
        return canonical_json(asdict(self) | {"specification": _fields(self.specification)})

    def borrow_rows(self, saes: Iterable[SaeRecord]) -> Specification:
        """Of a run over this one's rows, with these SAEs beside its own."""
        asked = self.specification
        return replace(asked, saes=(*asked.saes, *saes), rows_of=self.run)

    def has_rows_of(self, base: "RunRecord") -> bool:
        """Whether this run is over that one's rows, and not over those of another run of its name."""
        own = len(base.specification.saes)
        return self.specification == base.borrow_rows(self.specification.saes[own:])

    @classmethod
    def from_json(cls, data: bytes, key: str) -> "RunRecord":
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields["format_version"] > FORMAT_VERSION:
                raise CorruptObject(
                    f"{key} has format version {fields['format_version']}; this actstore reads up to {FORMAT_VERSION}",
                    field="format_version",
                    value=fields["format_version"],
                    allowed=f"at most {FORMAT_VERSION}",
                )
            inner = fields.pop("specification")
            inner["saes"] = tuple(SaeRecord(**sae) for sae in inner["saes"])
            for name in ("dense_sites", "norm_sites"):
                inner[name] = tuple(inner[name])
            inner["positions"] = Positions(**inner.get("positions", {}))
            inner["row_filters"] = tuple(_row_filter(found) for found in inner.get("row_filters", ()))
            return cls(specification=Specification(**inner), **fields)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptObject(f"{key} is not a run record: {error}", field="object", value=key) from error


def _fields(specification: Specification) -> dict[str, Any]:
    """As JSON has them. What a run of its own does not say, it did not say before it could be said."""
    fields = asdict(specification)
    for newer in ("rows_of", "source_field"):
        if not fields[newer]:
            del fields[newer]
    return fields


def _row_filter(fields: dict[str, Any]) -> RowFilter:
    value = fields["value"]
    return RowFilter(fields["column"], fields["comparison"], tuple(value) if isinstance(value, list) else value)


def canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
