"""From an address to a lab. The one file, beside the command, that reads the environment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from actstore._errors import Denied, Unavailable, refused
from actstore._lab import Lab
from actstore._records import S3Access

STACK_FILE = Path(".actstore") / "stack.json"
ADDRESSES = "host:port, ./folder, /folder or s3://bucket/prefix"


def connect(
    address: str | os.PathLike[str] | None = None,
    *,
    token: str | None = None,
    s3: S3Access | None = None,
    tls: bool | None = None,
) -> Lab:
    """A lab to ask.

    `address` is `host:port` of a service, or a bucket to read without one: `./folder`, `/folder` or
    `s3://bucket/prefix`. None: ACTSTORE_ADDRESS, or else the stack that `actstore up` started in this folder or one
    above. `token` defaults to ACTSTORE_TOKEN, or the stack's own; `s3` to ACTSTORE_S3_ENDPOINT, _ACCESS_KEY,
    _SECRET_KEY, _REGION and _SECURE. `tls` True encrypts; a token goes in the clear to another machine only with an
    explicit False.
    """
    if address is None:
        address, token = _found(token)
    elif not isinstance(address, str):
        address = str(Path(address).absolute())
    if _is_bucket(address):
        from actstore._bucket_backend import BucketBackend

        return Lab(BucketBackend(address, s3 or (_s3_access(os.environ) if address.startswith("s3://") else None)))
    from actstore._grpc_backend import GrpcBackend

    return Lab(GrpcBackend(_checked(address), token or os.environ.get("ACTSTORE_TOKEN"), tls))


def _found(token: str | None) -> tuple[str, str | None]:
    if address := os.environ.get("ACTSTORE_ADDRESS"):
        return address, token
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / STACK_FILE).is_file():
            stack = read_stack_file(folder / STACK_FILE)
            return stack["address"], token or stack["token"]
    raise Unavailable(
        f"no address, no ACTSTORE_ADDRESS in the environment, and no {STACK_FILE} in {here} or above it",
        reason="SERVICE_UNAVAILABLE",
        field="address",
        allowed=ADDRESSES,
        next_step="start a stack here with `actstore up`, or pass an address to connect",
    )


def stack_store() -> str | None:
    """The store of the stack that `actstore up` started in this folder or one above."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / STACK_FILE).is_file():
            return read_stack_file(folder / STACK_FILE)["store"] or None
    return None


def read_stack_file(path: Path) -> dict[str, str]:
    """Denied where somebody else wrote it: whoever chose the address would be sent what is asked, and could answer it.

    Unavailable where it is not whole, FileNotFoundError where it is not there.
    """
    owner = path.stat().st_uid
    if owner != os.getuid():
        raise _foreign(path, owner)
    text = path.read_text(errors="replace")
    try:
        stack = json.loads(text)
        return {"address": str(stack["address"]), "token": str(stack["token"]), "store": str(stack.get("store", ""))}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unavailable(
            f"{path} is not whole: the stack that wrote it ended early, or another program did",
            reason="SERVICE_UNAVAILABLE",
            field="address",
            value=path,
            allowed=ADDRESSES,
            next_step="start the stack again with `actstore up`, or pass an address to connect",
        ) from None


def _foreign(path: Path, owner: int) -> Denied:
    return Denied(
        f"{path} belongs to user {owner}, not to you",
        reason="UNAUTHENTICATED",
        field="address",
        value=path,
        allowed=f"a file of user {os.getuid()}",
        next_step="pass the address and token to connect, or start a stack of your own with `actstore up`",
    )


def _is_bucket(address: str) -> bool:
    """A path has a slash, which `host:port` has not; other schemes than s3 are neither."""
    if "://" in address:
        return address.startswith("s3://")
    return "/" in address or address in (".", "..")


def _checked(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise refused(f"{address!r} is not an address", "address", address, ADDRESSES)
    return address


def _s3_access(environment: Mapping[str, str]) -> S3Access:
    names = {name: f"ACTSTORE_S3_{name.upper()}" for name in ("endpoint", "access_key", "secret_key")}
    missing = [variable for variable in names.values() if not environment.get(variable)]
    if missing:
        message = f"an s3:// address needs s3=S3Access(...), or {', '.join(missing)} in the environment"
        raise refused(message, "s3", "None", "S3Access(endpoint, access_key, secret_key)", "STORE_CREDENTIALS")
    return S3Access(
        **{name: environment[variable] for name, variable in names.items()},
        region=environment.get("ACTSTORE_S3_REGION", "us-east-1"),
        secure=environment.get("ACTSTORE_S3_SECURE", "1") == "1",
    )
