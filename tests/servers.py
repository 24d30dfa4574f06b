"""Real servers for tests, usable without pytest: `with SeaweedServer() as server: ...`."""

import os
import select
import signal
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from actstore._stack.seaweed import SeaweedFS
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
        self._process.end()

    def restart(self) -> None:
        """On the same folder and ports, once it was killed."""
        for socket_file in self._socket_files:
            socket_file.unlink(missing_ok=True)
        self._launch("ab")
        self._until_answered(f"http://{self.endpoint}/healthz")


@contextmanager
def answering(answer: bytes, heard: list[bytes] | None = None) -> Iterator[str]:
    """The address of a listener that says this to whoever connects, once he has said something, and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            said = self.request.recv(1 << 16)
            if heard is not None:
                heard.append(said)
            self.request.sendall(answer)

    with _listening(Handler) as address:
        yield address


@contextmanager
def relaying(endpoint: str, instead: Sequence[bytes]) -> Iterator[str]:
    """The address of a relay to `endpoint`, which hears all that is said. The answers to the first who connect are kept
    back: each hears one of `instead`, an empty one for none at all, before the relay hangs up.
    """
    lies = list(instead)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            lie = lies.pop(0) if lies else None
            host, port = endpoint.split(":")
            with socket.create_connection((host, int(port))) as far:
                _relay(self.request, far, lie)

    with _listening(Handler) as address:
        yield address


def http_answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An answer after which the connection ends; unsaid, a client might ask again over it and be cut off."""
    told = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{told}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def s3_refusal(code: str, status: int = 400) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message><Resource>/b</Resource></Error>"
    return http_answer(f"{status} no", body.encode(), Content_Type="application/xml")


@contextmanager
def _listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()


def _relay(near: socket.socket, far: socket.socket, lie: bytes | None) -> None:
    """Until one of the two hangs up; or the far one answers, where that is not to be passed on."""
    while True:
        for source in select.select([near, far], [], [])[0]:
            said = source.recv(1 << 16)
            if source is far and lie is not None:
                near.sendall(lie)
                return
            if not said:
                return
            (near if source is far else far).sendall(said)
