"""Real servers for tests, usable without pytest: `with SeaweedServer() as server: ...`."""

import tempfile
from pathlib import Path
from typing import Self

from actstore._seaweed import SeaweedFS


class SeaweedServer(SeaweedFS):
    """A SeaweedFS in a temporary folder of its own, with endpoint, access_key, secret_key and bucket."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="seaweed-", ignore_cleanup_errors=True)
        super().__init__(Path(self._temporary.name))

    def __enter__(self) -> Self:
        return super().__enter__()

    def stop(self) -> None:
        super().stop()
        self._temporary.cleanup()
