"""From an address to a lab. The one file, beside the command, that reads the environment."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from actstore._errors import Unavailable, refused
from actstore._lab import Lab
from actstore._optional import install_extra, needs
from actstore._stack.folder import ADDRESSES, STACK_FILE, stack_folder
from actstore._transport.access import S3Access

# An IPv6 address without its brackets would be taken for another host and no port.
_SERVICE = re.compile(r"(?:[\w.-]+|\[[\da-fA-F:.]+(?:%\w+)?\]):(\d{1,5})", re.ASCII)


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
        address = str(Path(address).expanduser().absolute())
    elif address.startswith("~"):
        address = str(Path(address).expanduser())
    if _is_bucket(address):
        return _opened(address, s3)
    from actstore._transport.service import GrpcBackend

    return Lab(GrpcBackend(_checked(address), token or os.environ.get("ACTSTORE_TOKEN"), tls))


def _opened(address: str, s3: S3Access | None) -> Lab:
    """A bucket, with what only those need who open one."""
    if s3 is None and address.startswith("s3://"):
        s3 = _s3_access(os.environ)
    with needs(install_extra("bucket")):
        from actstore._transport.bucket import BucketBackend

        return Lab(BucketBackend(address, s3))


def _found(token: str | None) -> tuple[str, str | None]:
    if address := os.environ.get("ACTSTORE_ADDRESS"):
        return address, token
    folder = stack_folder()
    with suppress(FileNotFoundError):
        if folder is not None:
            stack = folder.read()
            return stack.address, token or stack.token
    raise Unavailable(
        f"no address, no ACTSTORE_ADDRESS in the environment, and no {STACK_FILE} in {Path.cwd()} or above it",
        reason="SERVICE_UNAVAILABLE",
        field="address",
        allowed=ADDRESSES,
        next_step="start a stack here with `actstore up`, or pass an address to connect",
    )


def _is_bucket(address: str) -> bool:
    """A path has a slash, which `host:port` has not; other schemes than s3 are neither."""
    if "://" in address:
        return address.startswith("s3://")
    return "/" in address or address in (".", "..")


def _checked(address: str) -> str:
    found = _SERVICE.fullmatch(address)
    if not found or not 0 < int(found[1]) < 2**16:
        raise refused(f"{address!r} is not an address", "address", address, ADDRESSES)
    return address


def _s3_access(environment: Mapping[str, str]) -> S3Access:
    names = {name: f"ACTSTORE_S3_{name.upper()}" for name in ("endpoint", "access_key", "secret_key")}
    missing = [variable for variable in names.values() if not environment.get(variable)]
    if missing:
        message = f"an s3:// address needs s3=S3Access(...), or {', '.join(missing)} in the environment"
        raise refused(message, "s3", "None", "S3Access(endpoint, access_key, secret_key)", "STORE_CREDENTIALS")
    secure = environment.get("ACTSTORE_S3_SECURE") or "1"
    if secure not in ("0", "1"):
        raise refused(f"ACTSTORE_S3_SECURE is {secure!r}", "secure", secure, "0 or 1")
    return S3Access(
        **{name: environment[variable] for name, variable in names.items()},
        region=environment.get("ACTSTORE_S3_REGION") or "us-east-1",
        secure=secure == "1",
    )
