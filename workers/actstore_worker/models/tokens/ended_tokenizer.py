"""A tokenizer in a process of its own, which can be ended: one that has begun with a text does not stop before its end,
and a long text takes seconds.
"""

import select
import struct
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from tokenizers import Tokenizer

# Before each message: its length in bytes, which is negative for what went wrong.
_LENGTH = struct.Struct("<q")
_LOOK_SECONDS = 0.1


class EndedTokenizer:
    """Tokenizes one text after another, as a fast tokenizer of transformers without special tokens around a text."""

    def __init__(self, tokenizer: Any, check: Callable[[], None]) -> None:
        """`check` is called again and again while a text is tokenized, and ends it by what it raises."""
        self._tokenizer, self._check = tokenizer, check
        self._process: subprocess.Popen[bytes] | None = None

    def ids(self, text: str) -> Int[NDArray[np.int32], " token"]:
        """Errors: RuntimeError, with the tokenizer's own error, or OSError or ValueError, if the tokenizer fails; what
        `check` raises.
        """
        data = text.encode()
        self._process = self._process or self._started()
        _write(cast("IO[bytes]", self._process.stdin), data)
        answers = cast("IO[bytes]", self._process.stdout)
        while not select.select([answers], [], [], _LOOK_SECONDS)[0]:
            self._check()
        return np.frombuffer(_read(answers), dtype=np.int32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _started(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        _write(cast("IO[bytes]", process.stdin), self._tokenizer.backend_tokenizer.to_str().encode())
        return process


def _write(file: IO[bytes], data: bytes, sign: int = 1) -> None:
    file.write(_LENGTH.pack(sign * len(data)))
    file.write(data)
    file.flush()


def _read(file: IO[bytes]) -> bytes:
    """Errors: EOFError; RuntimeError with what went wrong on the other side."""
    (length,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
    data = _exactly(file, abs(length))
    if length < 0:
        raise RuntimeError(data.decode())
    return data


def _exactly(file: IO[bytes], count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = file.read(count)
        if not part:
            raise EOFError("the process of a tokenizer has ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _answer() -> None:
    """Answers each text with its ids, until who asks is gone or the tokenizer fails."""
    try:
        tokenizer = Tokenizer.from_str(_read(sys.stdin.buffer).decode())
        while True:
            ids = tokenizer.encode(_read(sys.stdin.buffer).decode(), add_special_tokens=False).ids
            _write(sys.stdout.buffer, np.asarray(ids, dtype=np.int32).tobytes())
    except EOFError:
        return
    except BaseException as error:  # noqa: BLE001  a panic of Rust is no Exception
        _write(sys.stdout.buffer, f"{type(error).__name__}: {error}".encode(), sign=-1)


if __name__ == "__main__":
    _answer()
