"""The findings of fsck: what is wrong with an object, and the result for a run or a store."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is wrong with one object. `kind` is one of:

    - damaged: it does not match its record, or its own hash;
    - unreadable: it cannot be decoded;
    - missing: something refers to it, and it does not exist;
    - orphan: nothing reads it. No commit and no index refers to it, a larger index or checkpoint covers its shards, or
      it belongs to an incomplete cached answer;
    - unknown: actstore writes no object with such a key;
    - removed: it was an orphan.
    """

    kind: str
    key: str
    what: str


@dataclass(frozen=True)
class Verdict:
    """What was checked, and what is wrong with it."""

    runs: int
    shards: int
    objects: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Orphans take space but do no harm."""
        return all(finding.kind in ("orphan", "unknown", "removed") for finding in self.findings)
