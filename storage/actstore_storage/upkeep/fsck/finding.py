"""What fsck finds: what is wrong with one object, and its verdict on a run or a store."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is wrong with one object. `kind` is one of:

    - damaged: it is not as its record, or its own hash, says;
    - unreadable: nothing can be made of it;
    - missing: something names it, and it is gone;
    - orphan: nothing reads it. No commit and no index names it, a larger index or checkpoint holds its shards, or it is
      of a kept answer that is not whole;
    - unknown: actstore writes nothing under such a key;
    - removed: it was an orphan.
    """

    kind: str
    key: str
    what: str


@dataclass(frozen=True)
class Verdict:
    """What was looked at, and what is wrong with it."""

    runs: int
    shards: int
    objects: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Orphans take space and do no harm."""
        return all(finding.kind in ("orphan", "unknown", "removed") for finding in self.findings)
