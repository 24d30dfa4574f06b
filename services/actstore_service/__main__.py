"""`python -m actstore_service`: reads the settings, serves until SIGTERM or SIGINT, prints one JSON line when ready.

Settings are the fields of `Settings` and `StoreSettings`: from the environment, from the file of `--config` or
ACTSTORE_CONFIG, and the defaults, in this order. ACTSTORE_STORE is required. Only this module reads the environment.
"""

import json
import logging
import os
import signal
import sys
import threading

from actstore_api.logs.lines import start_logging
from actstore_api.logs.traces import end_traces, start_traces
from actstore_service.memory import MemoryKeeper, tune_memory
from actstore_service.server import Service
from actstore_service.settings import SETTINGS_BESIDE, Settings
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe
from actstore_storage.errors import ActstoreError
from actstore_storage.runs.opening import list_runs
from actstore_storage.settings.command import Options
from actstore_storage.settings.reading import FoundSettings
from actstore_storage.settings.store import StoreSettings

# How soon a second signal, or the end, is noticed.
SIGNAL_SECONDS = 0.1


def main() -> int:
    options = Options.of("actstore_service")
    tune_memory()
    # Done before anything is built, so that no signal has its default effect; blocked signals wait for sigwait.
    endings = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)
    try:
        settings = options.read((StoreSettings, Settings), os.environ, SETTINGS_BESIDE)
        if settings is None:
            return 0
        if options.check_store:
            return _check_store(settings.made(StoreSettings))
        service = _start(settings)
    except ActstoreError as error:
        print(f"actstore_service: {error.message}", file=sys.stderr)
        return 2
    limits = settings.made(Settings).limits
    MemoryKeeper(limits.memory_seconds, limits.memory_growth_bytes).start()
    ready = {"ready": "service", "address": service.address, "metrics": service.metrics_address}
    ready |= {"mutual_tls": service.mutual_tls_address} if service.mutual_tls_address else {}
    print(json.dumps(ready), flush=True)
    signal.sigwait(endings)
    _end(service, endings)
    return 0


def _check_store(store: StoreSettings) -> int:
    """Lets writers race for one key, as the workers do at their start. It needs keys that may write."""
    bucket = open_bucket(store.store, store.s3)
    probe(bucket)
    print(json.dumps({"checked": bucket.address}), flush=True)
    return 0


def _end(service: Service, endings: set[signal.Signals]) -> None:
    """Drains and stops; a second signal cuts this short."""
    ending = threading.Thread(target=_drain_and_stop, args=(service,), daemon=True)
    ending.start()
    while ending.is_alive():
        if signal.sigtimedwait(endings, SIGNAL_SECONDS) is not None:
            return


def _drain_and_stop(service: Service) -> None:
    service.drain()
    service.stop()


def _start(settings: FoundSettings) -> Service:
    store = settings.made(StoreSettings)
    bucket = open_bucket(store.store, store.s3)
    list_runs(bucket)  # so that a store that cannot be read is reported now, not in the first call
    own = settings.made(Settings)
    lines = start_logging("service", own.log_form)
    start_traces("service", os.environ)
    return Service(bucket, own, lambda: lines.dropped)


if __name__ == "__main__":
    status = main()
    end_traces()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: Python would wait for threads whose work nobody wants any more.
    os._exit(status)
