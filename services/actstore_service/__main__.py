"""`python -m actstore_service`: reads the environment, serves until SIGTERM or SIGINT, prints one JSON line when ready.

ACTSTORE_STORE is required: a folder or s3://bucket/prefix, the latter with ACTSTORE_S3_ENDPOINT, _ACCESS_KEY,
_SECRET_KEY (or _CREDENTIALS_FILE, which is read again when it changes) and, if they differ from us-east-1 and 1,
_REGION and _SECURE. See Settings for ACTSTORE_LISTEN, ACTSTORE_METRICS_LISTEN, ACTSTORE_TOKEN, ACTSTORE_GATEWAY,
ACTSTORE_GATEWAY_TOKEN and ACTSTORE_HELD_ROW_BYTES. An empty variable is absent.
"""

import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping

from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_storage.runs.opening import list_runs

# From glibc's malloc.h. Rows are sent in messages of megabytes, for which malloc would map new memory each time: a
# third of a stream's time was spent on the kernel's clearing of pages. With these options memory is reused.
_MALLOC = {"M_TRIM_THRESHOLD": (-1, 256 * 2**20), "M_MMAP_THRESHOLD": (-3, 32 * 2**20)}


def main() -> int:
    _keep_freed_pages()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Done before anything is built, so that no signal has its default effect; blocked signals wait for sigwait.
    endings = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)
    try:
        service = _start(os.environ)
    except ActstoreError as error:
        print(f"actstore_service: {error.message}", file=sys.stderr)
        return 2
    ready = {"ready": "service", "address": service.address, "metrics": service.metrics_address}
    print(json.dumps(ready), flush=True)
    signal.sigwait(endings)
    service.stop()
    return 0


def _keep_freed_pages() -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # not if the C library is another one
        for name, n_bytes in _MALLOC.values():
            library.mallopt(name, n_bytes)


def _start(environment: Mapping[str, str]) -> Service:
    given = {name: value for name, value in environment.items() if value}
    bucket = _bucket(given)
    list_runs(bucket)  # so that a store that cannot be read is reported now, not in the first call
    return Service(bucket, _settings(given))


def _settings(given: Mapping[str, str]) -> Settings:
    return Settings(
        listen=given.get("ACTSTORE_LISTEN", Settings.listen),
        metrics_listen=given.get("ACTSTORE_METRICS_LISTEN", Settings.metrics_listen),
        token=given.get("ACTSTORE_TOKEN"),
        access_file=given.get("ACTSTORE_ACCESS_FILE"),
        anonymous=given.get("ACTSTORE_ANONYMOUS", Settings.anonymous),
        tls_certificate=given.get("ACTSTORE_TLS_CERTIFICATE"),
        tls_key=given.get("ACTSTORE_TLS_KEY"),
        mutual_tls_listen=given.get("ACTSTORE_MUTUAL_TLS_LISTEN"),
        client_authorities=given.get("ACTSTORE_CLIENT_AUTHORITIES"),
        gateway=given.get("ACTSTORE_GATEWAY"),
        gateway_token=given.get("ACTSTORE_GATEWAY_TOKEN"),
        gateway_token_file=given.get("ACTSTORE_GATEWAY_TOKEN_FILE"),
        held_row_bytes=_count(given, "ACTSTORE_HELD_ROW_BYTES", Settings.held_row_bytes),
    )


def _count(given: Mapping[str, str], variable: str, default: int) -> int:
    text = given.get(variable, str(default))
    try:
        return int(text)
    except ValueError:
        message = f"{variable} is {text!r}, which is not a whole number"
        raise BadRequest(message, field=variable, value=text, allowed="a whole number") from None


def _bucket(given: Mapping[str, str]) -> Bucket:
    if "ACTSTORE_S3_ENDPOINT" not in given:
        return open_bucket(_required(given, "ACTSTORE_STORE"))
    secure = given.get("ACTSTORE_S3_SECURE", "1")
    if secure not in ("0", "1"):
        raise BadRequest("ACTSTORE_S3_SECURE must be 0 or 1", field="ACTSTORE_S3_SECURE", value=secure, allowed="0, 1")
    access = S3Access(
        endpoint=given["ACTSTORE_S3_ENDPOINT"],
        **_s3_keys(given),
        region=given.get("ACTSTORE_S3_REGION", "us-east-1"),
        secure=secure == "1",
    )
    return open_bucket(_required(given, "ACTSTORE_STORE"), access)


def _s3_keys(given: Mapping[str, str]) -> dict[str, str]:
    """A credentials file, which may be renewed while the service runs, or the keys themselves."""
    if file := given.get("ACTSTORE_S3_CREDENTIALS_FILE"):
        return {"credentials_file": file}
    return {
        "access_key": _required(given, "ACTSTORE_S3_ACCESS_KEY"),
        "secret_key": _required(given, "ACTSTORE_S3_SECRET_KEY"),
    }


def _required(given: Mapping[str, str], variable: str) -> str:
    if variable not in given:
        raise BadRequest(
            f"{variable} is not set", field=variable, allowed="see the table of variables in deploy/README.md"
        )
    return given[variable]


if __name__ == "__main__":
    sys.exit(main())
