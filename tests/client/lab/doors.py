"""A folder through a service of its own, as `actstore.connect(folder)` opens it without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import actstore
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket


@contextmanager
def served(folder: Path) -> Iterator[actstore.Lab]:
    started = Service(open_bucket(str(folder)), Settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"))
    with actstore.connect(started.address) as lab:
        yield lab
    started.stop()
