"""Real servers for tests, usable without pytest: `with SeaweedServer() as server: ...`."""

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from actstore._seaweed import SeaweedFS


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
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """On the same folder and ports, once it was killed."""
        assert self._process is not None
        for socket_file in self._socket_files:
            socket_file.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._process.args, stdout=log, stderr=log, cwd=self._folder)
        self._until_answered(f"http://{self.endpoint}/healthz")
