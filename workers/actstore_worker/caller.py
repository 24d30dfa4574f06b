"""Who asks the workers, and how long the caller waits."""

from dataclasses import dataclass, replace

from actstore_storage.errors import ActstoreError, BadRequest
from actstore_storage.runs.wanted import DEFAULT_PRINCIPAL


@dataclass(frozen=True)
class Caller:
    """`seconds_left` until the caller's deadline, when this was made; None: there is none."""

    principal: str
    seconds_left: float | None = None

    def after(self, seconds: float) -> "Caller":
        """The same caller so much later."""
        return self if self.seconds_left is None else replace(self, seconds_left=self.seconds_left - seconds)

    def check_waits(self) -> None:
        """Errors: ActstoreError CANCELLED once the deadline is over: work for nobody is not begun."""
        if self.seconds_left is not None and self.seconds_left <= 0:
            raise ActstoreError("the deadline of this call was over before its work began", reason="CANCELLED")

    def check_deadline(self, seconds: float, what: str = "the sweep") -> None:
        """Errors: BadRequest LIMIT_EXCEEDED with both numbers, for work that takes longer than the caller waits."""
        left = self.seconds_left
        if left is not None and seconds > left:
            raise BadRequest(
                f"{what} would take about {seconds:.0f} s, and its deadline is in {left:.0f} s",
                reason="LIMIT_EXCEEDED",
                field="deadline_seconds",
                value=round(seconds, 1),
                allowed=f"at most {left:.1f}: set a later deadline, or ask for less",
            )


# For work of this process's own.
ANYONE = Caller(DEFAULT_PRINCIPAL)
