"""The definition of a run: everything that affects its content, and facts found when it was created.

`Specification` is the request with every default filled in; its hash identifies the run. `RunRecord` is
`runs/<run>/run.json`, created once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from actstore_storage.errors import BadRequest, CorruptObject
from actstore_storage.format.records import as_record, canonical_json, is_sealed, seal, unseal

# Format versions that are read, and those that are written: the ones of releases, which may run side by side.
FORMATS_READ = (1, 2, 3, 4)
FORMATS_WRITTEN = (4,)
# The newest one.
FORMAT_VERSION = 4
# From this version on every record of a run has its own hash.
_SEALED_VERSION = 4
# What only runs of some version or a later one can have, by name.
_FEATURES: Mapping[str, int] = {"rows of another run": 3, "hashes of records": _SEALED_VERSION}
# Fields that a run before version 4 does not have, although they may have applied.
_UNSAID = frozenset({"config_sha256", "attention_implementation"})
_LEFT_OUT_IF_EMPTY = _UNSAID | {"rows_of", "marked_special", "source_field"}
DTYPES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of an element


@dataclass(frozen=True)
class SaeRecord:
    """An SAE as a run uses it. `site` is the short name of the site that it reads."""

    name: str
    sha256: str
    site: str
    d_sae: int


@dataclass(frozen=True)
class Positions:
    """Which tokens' rows the dense sites store; token ids, norms and features are stored for every token.

    `kind`: all; last (of each sequence); stride (positions divisible by `stride`); fraction (each token by a hash of
    seed, sequence and position, so that a shard that is captured again selects the same); feature (tokens where this
    feature of this SAE is active).
    """

    kind: str = "all"
    stride: int = 1
    fraction: int | float = 1.0
    seed: int = 0
    sae: str = ""
    feature: int = 0


@dataclass(frozen=True)
class RowFilter:
    """Keeps the rows of a table dataset whose `column` meets a condition, like pyarrow's filters.

    `comparison` is one of ==, !=, <, <=, >, >=, in, not in; `value` is a JSON scalar, or a list for the last two.
    """

    column: str
    comparison: str
    value: Any

    def __post_init__(self) -> None:
        if isinstance(self.value, list):  # as in JSON
            object.__setattr__(self, "value", tuple(self.value))


@dataclass(frozen=True)
class Specification:
    """What a run stores. Names are the caller's; hashes are those of what the workers found under them. A whole number
    stays whole when it is read, because the hash would change otherwise.

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
    # If `storage_dtype` cannot hold a value: store that site of that shard in float32 (True), or refuse the shard.
    widen_on_overflow: bool = False
    # Several sequences share a row of the model's batch and do not attend to each other.
    packing: bool = False
    positions: Positions = field(default_factory=Positions)
    # The column of token ids, if the dataset is already tokenized; empty: `text_field` has text.
    tokens_field: str = ""
    row_filters: tuple[RowFilter, ...] = ()
    max_documents: int | None = None
    # A token is a sink if its norm at any resid_post exceeds this many times the median of its sequence; None: the run
    # did not look for sinks.
    sink_ratio: int | float | None = None
    # Tokens that the tokenizer's files mark as special belong to that class, in addition to those with a role.
    marked_special: bool = False
    # The run whose rows these are: this one has the same values, and more SAEs. Empty: the run has its own rows.
    rows_of: str = ""
    # The hash of the parts of the model's configuration that affect numbers, RunRecord.model_config; and the attention
    # implementation. Empty: the run is older than version 4, which did not record them.
    config_sha256: str = ""
    attention_implementation: str = ""
    # The dataset's column that identifies a document's origin; empty: its file and row do.
    source_field: str = ""

    def made_by(self, weights_sha256: str, config_sha256: str) -> bool:
        """Whether the run's rows were made by a model with these hashes, as far as the run records them."""
        return self.weights_sha256 == weights_sha256 and self.config_sha256 in ("", config_sha256)

    def differing(self, asked: "Specification") -> list[str]:
        """The fields in which `asked` differs. Fields that this one is too old to have are left out, so that a run that
        an older version began can be finished.
        """
        unsaid = {name for name in _UNSAID if not getattr(self, name)}
        names = [found.name for found in fields(self) if found.name not in unsaid]
        return [name for name in names if getattr(self, name) != getattr(asked, name)]

    @property
    def stored_dtype(self) -> str:
        """The dtype of dense rows in shards that did not have to widen them."""
        return self.storage_dtype or self.dtype

    @property
    def sinks_above(self) -> float:
        """`sink_ratio`, or 0 if the run did not look for sinks, for which it needs norms at resid_post."""
        looked_at = any(site.startswith("resid_post.") for site in self.norm_sites)
        return self.sink_ratio or 0.0 if looked_at else 0.0

    @property
    def sha256(self) -> str:
        return _hash(_fields(self))


def written_format(specification: Specification, newest: int = FORMAT_VERSION) -> int:
    """The lowest format version that has all of a run, so that as many readers as possible can read it.

    `newest`: the newest version that may be written. Errors: BadRequest FORMAT_PINNED, with what needs a newer one.
    """
    needed = {name: _FEATURES[name] for name in _features_of(specification)}
    beyond = {name: version for name, version in needed.items() if version > newest}
    if beyond:
        what = ", ".join(f"{name} (format version {version})" for name, version in sorted(beyond.items()))
        raise BadRequest(
            f"the run needs {what}, and the workers write format version {newest} at most (ACTSTORE_WRITE_FORMAT)",
            reason="FORMAT_PINNED",
            field="format_version",
            value=max(beyond.values()),
            allowed=f"at most {newest}",
        )
    return next(version for version in FORMATS_WRITTEN if version >= max(needed.values()))


def _features_of(specification: Specification) -> Iterator[str]:
    yield "hashes of records"
    if specification.rows_of:
        yield "rows of another run"


@dataclass(frozen=True)
class RunRecord:
    """`runs/<run>/run.json`. Shard i holds sequences i * sequences_per_shard up to the next shard's first.

    `dense_widths`: elements per row of each dense site; `d_model` for sites that are not listed. `model_config`: the
    canonical JSON whose hash is the specification's `config_sha256`. `document_sources`: its shards have the sources of
    their documents.
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
    format_version: int = FORMAT_VERSION
    model_config: Mapping[str, Any] = field(default_factory=dict)
    document_sources: bool = False

    @property
    def sealed(self) -> bool:
        """Whether each of the run's records must have its hash; earlier versions had none."""
        return self.format_version >= _SEALED_VERSION

    def dense_width(self, site: str) -> int:
        return self.dense_widths.get(site, self.d_model)

    @property
    def shards_total(self) -> int:
        return -(-self.sequences_total // self.specification.sequences_per_shard)

    def shard_sequences(self, shard: int) -> range:
        size = self.specification.sequences_per_shard
        return range(shard * size, min((shard + 1) * size, self.sequences_total))

    def differences(self, asked: "RunRecord") -> Iterator[str]:
        """The differences of `asked` in words; for the model's configuration, each key."""
        for name in self.specification.differing(asked.specification):
            if name == "config_sha256":
                yield from self.config_differences(asked)
            else:
                yield f"{name} was {getattr(self.specification, name)}, and is {getattr(asked.specification, name)}"

    def config_differences(self, asked: "RunRecord") -> Iterator[str]:
        was, now = self.model_config, asked.model_config
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                yield f"config.{key} was {was.get(key)}, and is {now.get(key)}"

    def continuing(self, standing: "RunRecord") -> "RunRecord":
        """The record for continuing an existing run: with its specification, and in the format of its commits, which
        may be an older version.
        """
        return replace(
            self,
            specification=standing.specification,
            specification_sha256=standing.specification_sha256,
            format_version=standing.format_version,
            document_sources=standing.document_sources,
        )

    def to_json(self) -> bytes:
        return seal(asdict(self) | {"specification": _fields(self.specification)})

    def borrow_rows(self, saes: Iterable[SaeRecord]) -> Specification:
        """The record of a run over this one's rows, with these SAEs in addition."""
        asked = self.specification
        return replace(asked, saes=(*asked.saes, *saes), rows_of=self.run)

    def has_rows_of(self, base: "RunRecord") -> bool:
        """Whether this run is over that one's rows, and not over those of another run with its name."""
        own = len(base.specification.saes)
        return self.specification == base.borrow_rows(self.specification.saes[own:])

    @classmethod
    def from_json(cls, data: bytes, key: str) -> "RunRecord":
        """Errors: CorruptObject, also for an unknown format version, and for a specification that does not match its
        hash.
        """
        return unseal(data, key, lambda found: cls._of(found, is_sealed(data)))

    @classmethod
    def _of(cls, found: dict[str, Any], has_hash: bool) -> "RunRecord":
        if found["format_version"] > FORMAT_VERSION:
            raise CorruptObject(
                f"run {found['run']} has format version {found['format_version']}; this actstore reads up to "
                f"{FORMAT_VERSION}",
                field="format_version",
                value=found["format_version"],
                allowed=f"at most {FORMAT_VERSION}",
            )
        if found["format_version"] >= _SEALED_VERSION and not has_hash:
            raise ValueError("it has no record_sha256, which every record of its format version has")
        # As it is: fields that a version did not have were not hashed.
        if _hash(found["specification"]) != found["specification_sha256"]:
            raise ValueError("its specification does not match its specification_sha256")
        return as_record(found, cls)


def _fields(specification: Specification) -> dict[str, Any]:
    """The fields for JSON. New fields with their default are left out, so that an older run keeps its hash."""
    found = asdict(specification)
    return {name: value for name, value in found.items() if value or name not in _LEFT_OUT_IF_EMPTY}


def _hash(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(found)).hexdigest()
