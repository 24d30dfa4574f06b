"""A snapshot: a run's record and its commits at one moment."""

import hashlib
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from actstore_api.records.terms import Dtype, Provenance
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.cache import Memory
from actstore_storage.errors import NotThere
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import commit_key
from actstore_storage.format.moments import Moments
from actstore_storage.format.specification import RunRecord, SaeRecord
from actstore_storage.runs.checkpoint import Commits, own_memory


@dataclass(frozen=True)
class Snapshot:
    """The commits of a run at one moment, in order of shard. Every answer depends only on this and on immutable
    objects. `memory` keeps what was computed from it.
    """

    bucket: Bucket
    record: RunRecord
    commits: Commits
    memory: Memory = field(default_factory=own_memory, compare=False)

    def compute(self) -> None:
        """Computes what most answers need, for all who get the snapshot by `through`."""
        _ = self.name, self.commits.summary, self.commits.token_counts

    def through(self, bucket: Bucket, memory: Memory) -> "Snapshot":
        """The same snapshot, which is read from this bucket and kept in this memory."""
        found = copy(self)  # with the name that it has computed
        vars(found).update(bucket=bucket, commits=self.commits.through(bucket, memory), memory=memory)
        return found

    @property
    def shards(self) -> npt.NDArray[np.int64]:
        """The committed shards, ascending."""
        return self.commits.shards

    @cached_property
    def name(self) -> str:
        """SHA-256 of the commits' keys: two readers with the same name saw the same rows."""
        keys = [commit_key(self.record.run, shard) for shard in self.shards.tolist()]
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()

    def commits_of(self, sequences: range) -> list[Commit]:
        """The commits of shards with any of these sequences."""
        return list(self.commits.of_shards(self.shards_of(sequences)))

    def shards_of(self, sequences: range) -> range:
        """The shards with any of these sequences, committed or not."""
        size = self.record.specification.sequences_per_shard
        return range(sequences.start // size, -(-sequences.stop // size)) if sequences else range(0)

    @property
    def tokens_by_class(self) -> Mapping[str, int]:
        return self.commits.summary.tokens_by_class

    @property
    def tokens_committed(self) -> int:
        return sum(self.tokens_by_class.values())

    def norm_moments(self, site: str) -> Mapping[str, Moments]:
        """By token class, over all committed shards; classes without a token are left out."""
        return self.commits.summary.norm_moments.get(site, {})

    def non_finite(self, product: str) -> int:
        return self.commits.summary.non_finite.get(product, 0)

    @property
    def complete(self) -> bool:
        return len(self.commits) == self.record.shards_total

    def sae(self, name: str) -> SaeRecord:
        for sae in self.record.specification.saes:
            if sae.name == name:
                return sae
        names = [sae.name for sae in self.record.specification.saes]
        raise NotThere(
            f"run {self.record.run} has no features from SAE {name!r}",
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
            dtype=cast("Dtype", asked.dtype),
            attention_implementation=self._captured_with("attention_implementation"),
            device=self._captured_with("device"),
            run=self.record.run,
            specification_sha256=self.record.specification_sha256,
            snapshot=self.name,
            shards_committed=len(self.commits),
            shards_total=self.record.shards_total,
            code_version=self._captured_with("code_version"),
            sae_sha256={name: self.sae(name).sha256 for name in saes},
            sink_ratio=asked.sinks_above,
            config_sha256=asked.config_sha256,
        )

    def _captured_with(self, name: str) -> str:
        """Each value once, in order of shard: a run may be resumed on another device or by another version."""
        return ", ".join(self.commits.summary.how[name] or (getattr(self.record, name),))
