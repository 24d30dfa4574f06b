"""Who asks for a sweep, and how long the caller waits."""

from dataclasses import dataclass

from actstore_storage.errors import BadRequest


@dataclass(frozen=True)
class Caller:
    """`seconds_left` until the caller's deadline; None: there is none."""

    principal: str
    seconds_left: float | None = None

    def check_deadline(self, seconds: float) -> None:
        """Errors: BadRequest LIMIT_EXCEEDED with both numbers, for work that takes longer than the caller waits."""
        left = self.seconds_left
        if left is not None and seconds > left:
            raise BadRequest(
                f"the sweep would take about {seconds:.0f} s, and its deadline is in {left:.0f} s",
                reason="LIMIT_EXCEEDED",
                field="deadline_seconds",
                value=round(seconds, 1),
                allowed=f"at most {left:.1f}: set a later deadline, or ask for fewer cells",
            )
