"""Real servers for tests, usable without pytest: `with SeaweedServer() as server: ...`."""

import os
import signal
import tempfile
from pathlib import Path
from types import TracebackType

from actstore._seaweed import SeaweedFS
from tests.worker_process import descendants


class SeaweedServer(SeaweedFS):
    """A SeaweedFS in a temporary folder of its own, with endpoint, access_key, secret_key and bucket."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="seaweed-", ignore_cleanup_errors=True)
        super().__init__(Path(self._temporary.name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._temporary.cleanup()

    def kill(self) -> None:
        """As a crash would: nothing is flushed or closed."""
        assert self._process is not None
        for pid in descendants(self._process.pid):
            os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """On the same folder and ports, once it was killed."""
        for socket_file in self._socket_files:
            socket_file.unlink(missing_ok=True)
        self._launch("ab")
        self._until_answered(f"http://{self.endpoint}/healthz")
