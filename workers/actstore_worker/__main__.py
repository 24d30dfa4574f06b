"""`python -m actstore_worker`: the workers of one store, until SIGTERM or SIGINT. Only this module reads the
environment.

It prints a line of JSON on standard output for each part that it waits for, and one when it is ready; everything else
goes to standard error.
"""

import json
import os
import signal
import sys
from types import FrameType

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe
from actstore_storage.errors import ActstoreError
from actstore_storage.settings.command import Options
from actstore_worker.cluster.process import prepare_ray, reserve_standard_output
from actstore_worker.settings import SETTINGS_BESIDE, WorkerSettings, workers_settings


def main() -> int:
    """Returns exit code 0 after a signal, 2 if a setting or the store prevents the start."""
    try:
        settings = Options.of("actstore_worker").read((WorkerSettings,), os.environ, SETTINGS_BESIDE)
        if settings is not None:
            _serve(workers_settings(settings))
    except ActstoreError as error:
        print(f"actstore_worker: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _serve(settings: WorkerSettings) -> None:
    ready_line = reserve_standard_output()
    prepare_ray(os.environ, settings.ray_address)
    _stop_on_signals()
    with os.fdopen(ready_line, "w", buffering=1) as output:

        def tell(**what: str) -> None:
            print(json.dumps(what), file=output)

        tell(starting="the store")
        probe(open_bucket(settings.store, settings.s3))
        from actstore_worker.cluster.running import (
            running,
        )  # Not sooner: errors of the store are reported before Ray starts.

        with running(settings, _stop_on_signals, waits=lambda part: tell(starting=part)) as address:
            tell(ready="workers", address=address)
            output.close()
            while True:
                signal.pause()


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
