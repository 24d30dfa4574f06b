"""What a check of a store found."""

from dataclasses import dataclass

from actstore._answer import Table


@dataclass(frozen=True, repr=False)
class Verdict(Table):
    """A row a finding: kind (damaged, missing, unreadable, orphan, unknown, removed), key, and what is wrong.

    `sound` where nothing is damaged, missing or unreadable: orphans, which crashes leave, and keys that are not
    ours take space and do no harm.
    """

    sound: bool
    runs: int
    shards: int
    objects: int
    bytes: int

    def _title(self) -> str:
        state = "sound" if self.sound else "NOT SOUND"
        return f"{state}: {self.runs:,} runs, {self.shards:,} shards, {self.objects:,} objects, {self.bytes:,} bytes"
