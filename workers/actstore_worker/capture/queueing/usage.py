"""What has been used: the speed of the workers as measured, and each principal's seconds of a device."""

from collections.abc import Mapping

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


class DeviceSeconds:
    """Seconds of a device by principal. The first `principals` have a number of their own, all others share one: the
    names are labels of a metric, whose number must be bounded, and which must never fall.
    """

    def __init__(self, principals: int) -> None:
        self._principals = principals
        self._seconds: dict[str, float] = {}

    def add(self, principal: str, seconds: float) -> None:
        known = principal in self._seconds or len(self._seconds) < self._principals
        name = principal if known else OTHER
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @property
    def by_principal(self) -> Mapping[str, float]:
        return self._seconds
