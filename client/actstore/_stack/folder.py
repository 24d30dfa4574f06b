"""The state folder of a local stack: who runs it, where it answers, and its logs. `actstore.connect()` looks here.

`stack.lock` is locked by the process that started the stack and by the guards of its processes, for as long as one of
them is there, and says which these are. `stack.json` has the address and the token, once the stack answers.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from actstore._errors import STACK_FAILED, ActstoreError, Denied, StackFailed, Unavailable

STATE_FOLDER = Path(".actstore")
STACK_FILE = STATE_FOLDER / "stack.json"
ADDRESSES = "host:port, ./folder, /folder or s3://bucket/prefix"
_LOCK_FILE = "stack.lock"
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class StackFile:
    """The addresses of a stack. `store` and `metrics` are empty if the file lacks them."""

    address: str
    token: str = field(repr=False)
    store: str = ""
    metrics: str = ""


@dataclass(frozen=True)
class StackProcesses:
    """`owner` started the stack, at `since` (seconds since 1970). `processes`: ids of the guards, by the name of
    the process that each guards.
    `command`: the owner is the command `actstore up`, and nothing else of the user's.
    """

    owner: int
    since: float
    command: bool
    processes: Mapping[str, int] = field(default_factory=dict)

    @property
    def owner_is_there(self) -> bool:
        try:
            os.kill(self.owner, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        return True


class StackFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self._file = path / STACK_FILE.name
        self._lock_file = path / _LOCK_FILE

    @contextmanager
    def claimed(self, patience_seconds: float) -> Iterator[int]:
        """Takes the folder's lock and yields its file descriptor, which guards keep open.

        If the owner of an earlier stack was killed, waits until that stack has ended. Errors: StackFailed if one runs.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            give_up = time.monotonic() + patience_seconds
            while not _locked(lock):
                left = self.processes()
                if left is None or left.owner_is_there or time.monotonic() > give_up:
                    raise self._taken()
                time.sleep(_POLL_SECONDS)
            yield lock
        finally:
            os.close(lock)

    def write_processes(self, processes: StackProcesses) -> None:
        """Write them to the lock file itself; replacing the file would lose the lock."""
        self._lock_file.write_text(json.dumps(asdict(processes)))

    def processes(self) -> StackProcesses | None:
        """The processes of the stack that last had this folder; None if the file does not record them."""
        try:
            _check_owner(self._lock_file)
            return StackProcesses(**json.loads(self._lock_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def runs(self) -> bool:
        """Whether anything of a stack is there, be it still starting or already ending."""
        try:
            _check_owner(self._lock_file)
            lock = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _locked(lock)
        finally:
            os.close(lock)

    def write(self, stack: StackFile) -> None:
        """Holds the token, so its owner alone may read it, from the first byte on; whole or not at all."""
        scratch = self._file.with_name(f"{self._file.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(stack), file)
        scratch.replace(self._file)

    def read(self) -> StackFile:
        """Denied if somebody else wrote it: whoever chose the address would be sent what is asked, and could answer
        it. Unavailable if it is not whole, FileNotFoundError if it is not there.
        """
        _check_owner(self._file)
        try:
            stack = json.loads(self._file.read_text(errors="replace"))
            found = {"address": stack["address"], "token": stack["token"]}
            found |= {name: stack.get(name, "") for name in ("store", "metrics")}
            return StackFile(**{name: str(value) for name, value in found.items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Unavailable(
                f"{self._file} is not whole: the stack that wrote it ended early, or another program did",
                reason="SERVICE_UNAVAILABLE",
                field="address",
                value=self._file,
                allowed=ADDRESSES,
                next_step="start the stack again with `actstore up`, or pass an address to connect",
            ) from None

    def forget(self, token: str | None = None) -> None:
        """Remove `stack.json`; with a token, only if the file is of the stack with that token."""
        with suppress(FileNotFoundError, ActstoreError):
            if token is None or self.read().token == token:
                self._file.unlink()

    def _taken(self) -> StackFailed:
        try:
            what = f"the stack at {self.read().address} already runs in {self.path}"
        except (FileNotFoundError, ActstoreError):
            what = f"a stack already runs in {self.path}, and does not answer yet, or any more"
        step = "ask it with actstore.connect(), stop it with `actstore down`, or give this one another state_folder"
        return StackFailed(what, reason=STACK_FAILED, field="state_folder", value=self.path, next_step=step)


def stack_folder() -> StackFolder | None:
    """That of the stack of this folder or of one above: one that answers, starts or ends, or left its file behind."""
    here = _here()
    for folder in (here, *here.parents):
        found = StackFolder(folder / STATE_FOLDER)
        if (folder / STACK_FILE).is_file() or found.runs():
            return found
    return None


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise Unavailable(
            "no stack can be looked for: the folder that this process is in was removed",
            reason="SERVICE_UNAVAILABLE",
            field="address",
            allowed=ADDRESSES,
            next_step="change to another folder, or pass an address to connect",
        ) from None


def stack_store() -> str | None:
    """The store of the stack that `actstore up` started in this folder or one above."""
    folder = stack_folder()
    try:
        return None if folder is None else folder.read().store or None
    except FileNotFoundError:
        return None


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_owner(path: Path) -> None:
    owner = path.stat().st_uid
    if owner != os.getuid():
        raise Denied(
            f"{path} belongs to user {owner}, not to you",
            reason="UNAUTHENTICATED",
            field="address",
            value=path,
            allowed=f"a file of user {os.getuid()}",
            next_step="pass the address and token to connect, or start a stack of your own with `actstore up`",
        )
