"""What has been used: the speed of the workers as measured, and each principal's tokens and seconds of a device."""

from collections.abc import Mapping

from actstore_worker.models.used import Used

# The weight of earlier shards relative to the last one in the measured speed.
_MEMORY = 0.9
# What principals beyond the largest number that is counted apart are counted as.
OTHER = "other"


class Speed:
    """The speed at which one worker's device captures, over the last shards."""

    def __init__(self) -> None:
        self._token_layers = self._seconds = 0.0

    def observe(self, token_layers: float, device_seconds: float) -> None:
        if device_seconds > 0:
            self._token_layers = _MEMORY * self._token_layers + token_layers
            self._seconds = _MEMORY * self._seconds + device_seconds

    def seconds(self, token_layers: float, workers: int) -> float | None:
        """How long so many workers take. None: nothing was measured, or there are no workers."""
        if not self._token_layers or not workers:
            return None
        return token_layers * self._seconds / self._token_layers / workers


class UsedBy:
    """What principals used. The first `principals` have numbers of their own, all others share one: the names are
    labels of metrics, whose number must be bounded, and which must never fall.
    """

    def __init__(self, principals: int) -> None:
        self._most = principals
        self._used: dict[str, Used] = {}

    def add(self, principal: str, used: Used) -> None:
        known = principal in self._used or len(self._used) < self._most
        name = principal if known else OTHER
        self._used[name] = self._used.get(name, Used()) + used

    @property
    def principals(self) -> Mapping[str, Used]:
        return self._used
