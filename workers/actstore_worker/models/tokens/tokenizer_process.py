"""A tokenizer in a process of its own, which can be ended: one that has begun with a text does not stop before its end,
and a long text takes seconds.
"""

import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from tokenizers import Tokenizer

_LOOK_SECONDS = 0.1


class TokenizerProcess:
    """Tokenizes one text after another, as a fast tokenizer of transformers without special tokens around a text. The
    process starts with the first text.
    """

    def __init__(self, tokenizer: Any, check: Callable[[], None]) -> None:
        """`check` is called again and again while a text is tokenized, and ends it by what it raises."""
        self._tokenizer, self._check = tokenizer, check
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def ids(self, text: str) -> Int[NDArray[np.int32], " token"]:
        """Errors: RuntimeError with the tokenizer's own error; OSError, EOFError or ValueError if it cannot be asked;
        what `check` raises.
        """
        data = text.encode()
        connection = self._connection or self._start()
        connection.send_bytes(data)
        while not connection.poll(_LOOK_SECONDS):
            self._check()
        found = connection.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        ids: NDArray[np.int32] = found
        return ids

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()

    def _start(self) -> Connection:
        self._connection, its = Pipe()
        with its:
            command = [sys.executable, "-P", "-m", __name__, str(its.fileno())]
            none = subprocess.DEVNULL
            self._process = subprocess.Popen(command, pass_fds=[its.fileno()], stdin=none, stdout=none, stderr=none)
        self._connection.send_bytes(self._tokenizer.backend_tokenizer.to_str().encode())
        return self._connection


def _answer(asked: Connection) -> None:
    """Answers each text with its ids, until who asks is gone, or with what is wrong, if the tokenizer fails."""
    try:
        tokenizer = Tokenizer.from_str(asked.recv_bytes().decode())
        while True:
            ids = tokenizer.encode(asked.recv_bytes().decode(), add_special_tokens=False).ids
            asked.send(np.asarray(ids, dtype=np.int32))
    except EOFError:
        return
    except BaseException as error:  # noqa: BLE001  a panic of Rust is no Exception
        asked.send(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _answer(Connection(int(sys.argv[1])))
