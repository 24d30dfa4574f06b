"""Opens a lab on an address. The one file, beside the command, that reads the environment."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from actstore import _checks
from actstore._errors import Unavailable, refused
from actstore._lab import Lab
from actstore._optional import install_extra, needs
from actstore._stack.folder import ADDRESSES, STACK_FILE, stack_folder
from actstore._transport.access import Connection, Retries, S3Access, Timeout
from actstore._transport.credentials import ClientCertificate, Credentials

DEFAULT = Connection()
# gRPC's own limit.
MAXIMUM_MESSAGE_BYTES = 2**31 - 1
Value = TypeVar("Value")
_FOR_TLS = (
    "ACTSTORE_ROOT_CERTIFICATES",
    "ACTSTORE_CLIENT_CERTIFICATE",
    "ACTSTORE_CLIENT_KEY",
    "ACTSTORE_AUTHORITY",
)

# An IPv6 address without its brackets would be taken for another host and no port.
_SERVICE = re.compile(r"(?:[\w.-]+|\[[\da-fA-F:.]+(?:%\w+)?\]):(\d{1,5})", re.ASCII)
_AUTHORITY = re.compile(r"[\w.-]+(?::\d{1,5})?", re.ASCII)
_SEVERAL = re.compile(r"ipv4:(.+,.+)|ipv6:(.+,.+)", re.ASCII)


def connect(
    address: str | os.PathLike[str] | None = None,
    *,
    token: str | Callable[[], str] | None = None,
    token_file: str | os.PathLike[str] | None = None,
    s3: S3Access | None = None,
    tls: bool | None = None,
    root_certificates: str | os.PathLike[str] | bytes | None = None,
    client_certificate: str | os.PathLike[str] | None = None,
    client_key: str | os.PathLike[str] | None = None,
    authority: str | None = None,
    timeout: Timeout = DEFAULT.timeout,
    retries: Retries = DEFAULT.retries,
    max_message_bytes: int = DEFAULT.max_message_bytes,
) -> Lab:
    """Open a lab: a service, or a bucket without one. Nothing is asked yet.

    Args:
        address: `host:port` of a service, or a bucket: `./folder`, `/folder` or `s3://bucket/prefix`. None: the
            environment's ACTSTORE_ADDRESS, or else the stack that `actstore up` started in this folder or one above.
            A name that stands for several services is asked by turns; so are `ipv4:host:port,host:port`.
        token: What the service knows its callers by: the token, or a function that returns one. The function is called
            for each question, perhaps from several threads, so it may renew a token that expires. None: `token_file`,
            ACTSTORE_TOKEN, ACTSTORE_TOKEN_FILE, or the stack's own.
        token_file: A file with the token, which is read again when it changes.
        s3: Keys of an `s3://` bucket. None: ACTSTORE_S3_ENDPOINT, ACTSTORE_S3_CREDENTIALS_FILE or else
            ACTSTORE_S3_ACCESS_KEY and ACTSTORE_S3_SECRET_KEY, ACTSTORE_S3_REGION and ACTSTORE_S3_SECURE.
        tls: True encrypts the connection to a service. False sends everything in the clear, the token too. None:
            encrypted if certificates or an authority are given; else in the clear, which is refused for a token and
            another machine. The environment's ACTSTORE_TLS (1 or 0) takes the place of None, except for a stack of this
            folder, which has no TLS.
        root_certificates: Certificates of the authorities that are trusted, in PEM: a file, or its bytes. None: the
            file that ACTSTORE_ROOT_CERTIFICATES names, or else the authorities that gRPC knows.
        client_certificate: A file with a certificate of the client's own and its chain, in PEM, for a service with
            mutual TLS. It is read again when it changes. None: ACTSTORE_CLIENT_CERTIFICATE.
        client_key: The file with its key, in PEM. None: ACTSTORE_CLIENT_KEY.
        authority: The name that the service's certificate must have, over TLS, where that is not the host of the
            address: for several addresses of one service, `ipv4:host:port,host:port`, and behind a tunnel. None:
            ACTSTORE_AUTHORITY, or else the host.
        timeout: Time limits.
        retries: How often a question is repeated while the service is unavailable.
        max_message_bytes: Largest answer that is accepted, in bytes. Answers that are streams have many messages.

    Returns:
        A lab. Close it, or use it in a `with` statement.

    Raises:
        BadRequest: An address, token or certificate that cannot be used.
        Denied: A token that would be sent in the clear.
        Unavailable: No address is given, and no stack is found.
    """
    environment: Mapping[str, str] = os.environ
    if address is None and not environment.get("ACTSTORE_ADDRESS"):
        # What the environment says of the lab's service does not hold for a stack here, which has no TLS.
        environment = {}
        address, own = _stack_here()
        token = own if token is None and token_file is None else token
    elif address is None:
        address = environment["ACTSTORE_ADDRESS"]
    elif not isinstance(address, str):
        address = str(Path(address).expanduser().absolute())
    elif address.startswith("~"):
        address = str(Path(address).expanduser())
    if _is_bucket(address):
        return _opened(address, s3)
    from actstore._transport.service import GrpcBackend

    if tls is False:  # which certificates of the environment do not change, and those that are given contradict
        environment = {name: value for name, value in environment.items() if name not in _FOR_TLS}
    how = Connection(
        timeout=_checked_value(timeout, Timeout, "timeout"),
        retries=_checked_value(retries, Retries, "retries"),
        max_message_bytes=_checks.count(max_message_bytes, "max_message_bytes", maximum=MAXIMUM_MESSAGE_BYTES),
        root_certificates=_certificates(root_certificates or environment.get("ACTSTORE_ROOT_CERTIFICATES")),
        certificate=_own_certificate(client_certificate, client_key, environment),
        authority=_name(authority or environment.get("ACTSTORE_AUTHORITY")),
    )
    encrypted = _switched("ACTSTORE_TLS", environment) if tls is None else _checks.switch(tls, "tls")
    return Lab(GrpcBackend(_checked(address), _credentials(token, token_file, environment), encrypted, how))


def _credentials(token: object, token_file: object, environment: Mapping[str, str]) -> Credentials:
    """What is given counts, and else the environment. An empty token is none."""
    if token is not None and not isinstance(token, str) and not callable(token):
        message = f"token cannot be a {type(token).__name__}"
        raise refused(message, "token", type(token).__name__, "a text, or a function that returns one")
    if token or token_file:
        return Credentials(token or None, token_file)  # type: ignore[arg-type]
    found = environment.get("ACTSTORE_TOKEN")
    return Credentials(found) if found else Credentials(None, environment.get("ACTSTORE_TOKEN_FILE") or None)


def _own_certificate(
    certificate: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None, environment: Mapping[str, str]
) -> ClientCertificate | None:
    """Errors: BadRequest for a certificate without its key, or the reverse."""
    given = (
        certificate or environment.get("ACTSTORE_CLIENT_CERTIFICATE"),
        key or environment.get("ACTSTORE_CLIENT_KEY"),
    )
    if not any(given):
        return None
    if given[0] and given[1]:
        return ClientCertificate(Path(given[0]).expanduser(), Path(given[1]).expanduser())
    field, there = ("client_key", given[0]) if given[0] else ("client_certificate", given[1])
    raise refused(f"{there} is given without its {field}", field, "None", "both files, or neither")


def _name(authority: str | None) -> str | None:
    """Errors: BadRequest for what is no name of a host."""
    if authority and not _AUTHORITY.fullmatch(_checks.text(authority, "authority")):
        raise refused(f"{authority!r} is no name of a host", "authority", authority, "a name, as actstore.lab.example")
    return authority or None


def _checked_value(value: Value, kind: type[Value], field: str) -> Value:
    if not isinstance(value, kind):
        raise refused(f"{field} cannot be {value!r}", field, repr(value), f"actstore.{kind.__name__}(...)")
    return value


def _certificates(given: str | os.PathLike[str] | bytes | None) -> bytes | None:
    """In PEM. Errors: BadRequest for a file that cannot be read or holds no certificate."""
    if not given:
        return None
    allowed = "a file of certificates in PEM, or its bytes"
    try:
        found = given if isinstance(given, bytes) else Path(given).expanduser().read_bytes()
    except (OSError, TypeError) as error:
        message = f"the root certificates cannot be read: {error}"
        raise refused(message, "root_certificates", str(given), allowed) from None
    if b"-----BEGIN CERTIFICATE-----" not in found:
        shown = "bytes" if isinstance(given, bytes) else str(given)
        raise refused("there is no certificate in root_certificates", "root_certificates", shown, allowed)
    return found


def _switched(variable: str, environment: Mapping[str, str]) -> bool | None:
    """Whether a variable of the environment is 1 (True) or 0 (False); None if it is not set."""
    value = environment.get(variable) or None
    if value not in (None, "0", "1"):
        raise refused(f"{variable} is {value!r}", variable, value, "0 or 1")
    return None if value is None else value == "1"


def _opened(address: str, s3: S3Access | None) -> Lab:
    """A lab on a bucket. Only this function imports what a bucket needs."""
    if s3 is None and address.startswith("s3://"):
        s3 = _s3_access(os.environ)
    with needs(install_extra("bucket")):
        from actstore._transport.bucket import BucketBackend

        return Lab(BucketBackend(address, s3))


def _stack_here() -> tuple[str, str]:
    """The address and the token of the stack that runs in this folder or one above. Errors: Unavailable."""
    folder = stack_folder()
    with suppress(FileNotFoundError):
        if folder is not None:
            stack = folder.read()
            return stack.address, stack.token
    raise Unavailable(
        f"no address, no ACTSTORE_ADDRESS in the environment, and no {STACK_FILE} in {Path.cwd()} or above it",
        reason="SERVICE_UNAVAILABLE",
        field="address",
        allowed=ADDRESSES,
        next_step="start a stack here with `actstore up`, or pass an address to connect",
    )


def _is_bucket(address: str) -> bool:
    """A path has a slash, and `host:port` has none. An address with a scheme other than s3 is neither."""
    if "://" in address:
        return address.startswith("s3://")
    return "/" in address or address in (".", "..")


def _checked(address: str) -> str:
    several = _SEVERAL.fullmatch(address)
    for one in (several[1] or several[2]).split(",") if several else [address]:
        found = _SERVICE.fullmatch(one)
        if not found or not 0 < int(found[1]) < 2**16:
            raise refused(f"{address!r} is not an address", "address", address, ADDRESSES)
    return address


def _s3_access(environment: Mapping[str, str]) -> S3Access:
    keys = ("credentials_file",) if environment.get("ACTSTORE_S3_CREDENTIALS_FILE") else ("access_key", "secret_key")
    names = {name: f"ACTSTORE_S3_{name.upper()}" for name in ("endpoint", *keys)}
    missing = [variable for variable in names.values() if not environment.get(variable)]
    if missing:
        message = f"an s3:// address needs s3=S3Access(...), or {', '.join(missing)} in the environment"
        raise refused(message, "s3", "None", "S3Access(endpoint, access_key, secret_key)", "STORE_CREDENTIALS")
    secure = _switched("ACTSTORE_S3_SECURE", environment)
    return S3Access(
        **{name: environment[variable] for name, variable in names.items()},
        region=environment.get("ACTSTORE_S3_REGION") or "us-east-1",
        secure=True if secure is None else secure,
    )
