"""A run as a reader finds it at one moment: its record and the commits that were there."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from actstore_storage.bucket import Bucket
from actstore_storage.commit import Commit
from actstore_storage.errors import NotThere
from actstore_storage.layout import commit_key
from actstore_storage.specification import RunRecord, SaeRecord


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from: enough to compute it again. The fields are those of the api's message."""

    model: str
    model_revision: str
    weights_sha256: str
    tokenizer_sha256: str
    dtype: str
    attention_implementation: str
    device: str
    run: str
    specification_sha256: str
    snapshot: str
    shards_committed: int
    shards_total: int
    code_version: str
    sae_sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Commits are in order of shard. Every answer is a function of this and of immutable objects alone."""

    bucket: Bucket
    record: RunRecord
    commits: tuple[Commit, ...]

    @cached_property
    def name(self) -> str:
        """SHA-256 over the commits' keys: two readers with the same name saw the same rows."""
        keys = [commit_key(self.record.run, commit.shard) for commit in self.commits]
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()

    @property
    def tokens_committed(self) -> int:
        return sum(commit.tokens for commit in self.commits)

    @property
    def complete(self) -> bool:
        return len(self.commits) == self.record.shards_total

    def sae(self, name: str) -> SaeRecord:
        for sae in self.record.specification.saes:
            if sae.name == name:
                return sae
        names = [sae.name for sae in self.record.specification.saes]
        raise NotThere(
            f"run {self.record.run} has no features of SAE {name!r}",
            reason="SAE_NOT_FOUND",
            field="sae",
            value=name,
            allowed=names or "none: this run was captured without SAEs",
        )

    def provenance(self, saes: Iterable[str] = ()) -> Provenance:
        """`saes`: the names of those that the answer used."""
        asked = self.record.specification
        return Provenance(
            model=asked.model,
            model_revision=asked.model_revision,
            weights_sha256=asked.weights_sha256,
            tokenizer_sha256=asked.tokenizer_sha256,
            dtype=asked.dtype,
            attention_implementation=self._captured_with("attention_implementation"),
            device=self._captured_with("device"),
            run=self.record.run,
            specification_sha256=self.record.specification_sha256,
            snapshot=self.name,
            shards_committed=len(self.commits),
            shards_total=self.record.shards_total,
            code_version=self._captured_with("code_version"),
            sae_sha256={name: self.sae(name).sha256 for name in saes},
        )

    def _captured_with(self, name: str) -> str:
        """Each value once, in order of shard: a run may be resumed on another device or by another version."""
        return ", ".join(dict.fromkeys(getattr(part, name) for part in self.commits or (self.record,)))
