"""Refusals of hostile files: soon, and before they take memory."""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from actstore_storage.errors import BadRequest
from tests.waiting import PATIENCE_SECONDS

MEBIBYTE = 1 << 20
# What libraries take when they are used for the first time, and not what hostile files ask for.
GROWTH_MEBIBYTES = 120


def refused(read: Callable[[], object]) -> BadRequest:
    """The refusal of something that is read. Fails if it hangs, is read, or takes memory."""
    ends: list[BadRequest | str] = []
    thread = threading.Thread(target=lambda: ends.append(_end_of(read)), daemon=True)
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory from now on
    before = _highest_mebibytes()
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert ends, "it hangs"
    assert isinstance(ends[0], BadRequest), ends[0]
    assert _highest_mebibytes() - before < GROWTH_MEBIBYTES
    assert ends[0].details["field"]
    return ends[0]


def _highest_mebibytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def _end_of(read: Callable[[], object]) -> BadRequest | str:
    try:
        read()
    except BadRequest as error:
        return error
    except Exception as error:  # noqa: BLE001  the test tells which
        return repr(error)
    return "it was read"


def link_out(file: Path) -> None:
    """Replaces a file by a link to the same bytes outside the folder `models` that it is in."""
    outside = next(folder for folder in file.parents if folder.name == "models").with_name("outside")
    outside.mkdir(exist_ok=True)
    if file.exists():
        file.rename(outside / file.name)
    else:
        (outside / file.name).write_text("{}")
    file.symlink_to(outside / file.name)


def loop(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(file.name)


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def device(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


IN_PLACE_OF_A_FILE: dict[str, Callable[[Path], None]] = {
    "link": link_out,
    "loop": loop,
    "pipe": pipe,
    "folder": folder,
    "device": device,
}


def long_header(file: Path) -> None:
    """A safetensors file of a million tensors without elements, whose header alone is 60 MB."""
    parts = (b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(1_000_000))
    header = b"{" + b",".join(parts) + b"}"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
