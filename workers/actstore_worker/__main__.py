"""`python -m actstore_worker`: the workers of one store, until SIGTERM or SIGINT. Only this module reads the
environment.

It prints a line of JSON on standard output for each part that it waits for, and one when it is ready; everything else
goes to standard error.
"""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from actstore_api.logs.lines import start_logging
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe
from actstore_storage.errors import ActstoreError
from actstore_storage.settings.command import Options
from actstore_storage.settings.gateway_tokens import TOKEN_FILE
from actstore_worker.cluster.joining.process import prepare_ray, reserve_standard_output
from actstore_worker.settings import SETTINGS_BESIDE, WorkerSettings, workers_settings

LOG = logging.getLogger("actstore_worker")
# The exit code if the cluster of the workers has gone.
RAY_GONE = 3
_SECRETS = ("ACTSTORE_GATEWAY_TOKEN", "ACTSTORE_S3_ACCESS_KEY", "ACTSTORE_S3_SECRET_KEY")


def main() -> int:
    """Returns exit code 0 after a signal, 2 if a setting or the store prevents the start. It is 3 if Ray has gone."""
    try:
        options = Options.of("actstore_worker")
        found = options.read((WorkerSettings,), os.environ, SETTINGS_BESIDE)
        if found is not None:
            _stop_on_signals()
            with _secrets_folder(found.made(WorkerSettings).ray_address) as secrets:
                settings = workers_settings(found, secrets)
                start_logging("workers", settings.log_form)
                if options.check_store:
                    _check_store(settings)
                else:
                    _serve(settings, secrets)
    except ActstoreError as error:
        print(f"actstore_worker: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


@contextmanager
def _secrets_folder(ray_address: str | None) -> Iterator[Path | None]:
    """A folder that only this user may enter, for a Ray of our own. None: on a cluster, other nodes do not have it."""
    if ray_address is not None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="actstore-secrets-") as folder:
        yield Path(folder)


def _check_store(settings: WorkerSettings) -> None:
    bucket = open_bucket(settings.store, settings.s3)
    probe(bucket)
    print(json.dumps({"checked": bucket.address}), flush=True)


def _serve(settings: WorkerSettings, secrets: Path | None) -> None:
    for name in _SECRETS:
        os.environ.pop(name, None)  # They are in files, and Ray's processes would inherit them.
    os.environ[TOKEN_FILE] = str(settings.token_file)  # Serve's proxy reads it.
    ready_line = reserve_standard_output()
    prepare_ray(os.environ, settings.ray_address)
    with os.fdopen(ready_line, "w", buffering=1) as output:

        def tell(**what: str) -> None:
            print(json.dumps(what), file=output)

        tell(starting="the store")
        probe(open_bucket(settings.store, settings.s3))
        from actstore_worker.cluster.running import (
            running,
        )  # Not sooner: errors of the store are reported before Ray starts.

        gone = partial(_end_with_ray, secrets)
        with running(settings, _stop_on_signals, gone, waits=lambda part: tell(starting=part)) as address:
            tell(ready="workers", address=address)
            output.close()
            while True:
                signal.pause()


def _end_with_ray(secrets: Path | None, why: Exception) -> NoReturn:
    """Ends this process at once: an orderly end would make calls to a Ray that has gone."""
    from actstore_worker.cluster.joining.watch import abandon_ray

    LOG.critical("%s; start the workers again", why)
    logging.shutdown()
    abandon_ray()
    if secrets is not None:
        shutil.rmtree(secrets, ignore_errors=True)
    os._exit(RAY_GONE)


def _stop_on_signals() -> None:
    """The first signal unwinds the whole program; further ones do not disturb that.

    It is called again after Ray has started, because Ray installs handlers that end the process at once.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


if __name__ == "__main__":
    sys.exit(main())
