"""What a run is: everything that decides its content, and what was found when it began.

`Specification` is what was asked for, with every default filled in; its hash identifies the run. `RunRecord` is
`runs/<run>/run.json`, created once.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from actstore_storage.errors import CorruptObject

FORMAT_VERSION = 1
DTYPES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of an element


@dataclass(frozen=True)
class SaeRecord:
    """An SAE as a run uses it. `site` is the short name of the site it reads."""

    name: str
    sha256: str
    site: str
    d_sae: int


@dataclass(frozen=True)
class Specification:
    """Names are as the caller gave them; hashes are of what the workers found under them."""

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

    @property
    def sha256(self) -> str:
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """`runs/<run>/run.json`. Shard i holds sequences i * sequences_per_shard up to the next shard's first."""

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
    format_version: int = FORMAT_VERSION

    @property
    def shards_total(self) -> int:
        return -(-self.sequences_total // self.specification.sequences_per_shard)

    def shard_sequences(self, shard: int) -> range:
        size = self.specification.sequences_per_shard
        return range(shard * size, min((shard + 1) * size, self.sequences_total))

    def to_json(self) -> bytes:
        return canonical_json(asdict(self))

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
            return cls(specification=Specification(**inner), **fields)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptObject(f"{key} is not a run record: {error}", field="object", value=key) from error


def canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
