"""Starts a whole secured deployment on this machine, until SIGTERM or Ctrl-C: `up.py FOLDER`.

FOLDER is one that `setup` made. A SeaweedFS keeps the bucket; workers and two services run over it as a lab's do, with
TLS, tokens in files, and one key that reads beside one that writes. With `--prometheus` a Prometheus scrapes them and
evaluates the rules of deploy/monitoring. Processes that end are started again, so that `kill -TERM` is an upgrade.

It prints one line of JSON when all answer. FOLDER/addresses has the same as variables for a shell, FOLDER/run the
number of each process, FOLDER/logs what they say.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from actstore._stack.guard import Guarded
from actstore._stack.seaweed import SeaweedFS, free_ports

MONITORING = Path(__file__).resolve().parents[1] / "monitoring"
# The canary's text.
CANARY = Path(__file__).resolve().parents[1] / "canary"
START_SECONDS = 300.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.1
# So long a process has to have run, else its end is no upgrade, and starting it again would not help.
RUN_SECONDS = 1.0
SERVICES = ("service-1", "service-2")
PORTS = {"service-1": 7433, "service-2": 7434, "gateway": 7435, "prometheus": 9090}
METRICS_PORTS = {"service-1": 9433, "service-2": 9434, "workers": 9435}


@dataclass
class Part:
    """One process of the deployment. It ends with this one, however this one ends."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    process: Guarded = field(init=False)
    since: float = 0.0

    def start(self) -> None:
        self.since = time.monotonic()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACTSTORE_")}
        said = (self.folder / "logs" / f"{self.name}.out").open("wb")
        log = (self.folder / "logs" / f"{self.name}.log").open("ab")
        with said, log:
            self.process = Guarded(
                self.command,
                grace_seconds=STOP_SECONDS,
                env={**inherited, **self.environment},
                stdout=said,
                stderr=log,
                cwd=self.folder / "run",
            )
        (self.folder / "run" / f"{self.name}.pid").write_text(f"{self.process.pid}\n")

    def wait_until_ready(self) -> None:
        """Until it has printed its line. Prometheus prints none."""
        give_up = time.monotonic() + START_SECONDS
        said = self.folder / "logs" / f"{self.name}.out"
        while '"ready"' not in said.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > give_up:
                sys.exit(f"up.py: {self.name} did not start: read {self.folder / 'logs' / self.name}.log")
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        self.process.end()

    def start_again(self) -> None:
        """Starts it again if it has ended."""
        if self.process.poll() is not None:
            if time.monotonic() - self.since < RUN_SECONDS:
                sys.exit(f"up.py: {self.name} ends at once: read {self.folder / 'logs' / self.name}.log")
            print(f"up.py: {self.name} ended with status {self.process.returncode}, and starts again", file=sys.stderr)
            self.start()


def main() -> None:
    options = _options()
    folder = options.folder.resolve()
    if not (folder / "actstore.toml").exists():
        sys.exit(f"up.py: {folder} has no actstore.toml: make it with deploy/local/setup")
    os.umask(0o077)
    (folder / "run" / "up.pid").write_text(f"{os.getpid()}\n")
    # The first signal unwinds everything, and further ones do not disturb that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ports, metrics = _ports(options.free_ports)
    with ExitStack() as running:
        store = _store(running.enter_context(SeaweedFS(folder / "store")), folder)
        parts: list[Part] = []
        for part in _parts(options, folder, store, ports, metrics):
            part.start()
            running.callback(part.end)
            parts.append(part)
            if part.name != "prometheus":
                part.wait_until_ready()
        _say(folder, ports, metrics, store)
        while True:
            time.sleep(POLL_SECONDS)
            for part in parts:
                part.start_again()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=Path, nargs="*", default=[], metavar="DIR", help="folders of models and SAEs")
    parser.add_argument("--datasets", type=Path, nargs="*", default=[], metavar="DIR", help="folders of text")
    parser.add_argument("--without-workers", action="store_true", help="answer what is stored, and no more")
    parser.add_argument("--prometheus", metavar="PROGRAM", help="the program `prometheus`, to watch all of it")
    parser.add_argument("--free-ports", action="store_true", help="any free ports, instead of those of the page")
    return parser.parse_args()


def _ports(free: bool) -> tuple[dict[str, int], dict[str, int]]:
    if not free:
        return PORTS, METRICS_PORTS
    found = free_ports(len(PORTS) + len(METRICS_PORTS))
    names = [*PORTS, *METRICS_PORTS]
    return dict(zip(names[: len(PORTS)], found, strict=False)), dict(
        zip(names[len(PORTS) :], found[len(PORTS) :], strict=True)
    )


def _store(weed: SeaweedFS, folder: Path) -> dict[str, str]:
    """The variables of the store. Its keys are new with each start, and lie in two files."""
    keys = {"reader": (weed.reader_access_key, weed.reader_secret_key), "writer": (weed.access_key, weed.secret_key)}
    for name, (access, secret) in keys.items():
        file = folder / f"store-{name}"
        file.touch(mode=0o600)
        file.write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    return {
        "ACTSTORE_STORE": f"s3://{weed.bucket}",
        "ACTSTORE_S3_ENDPOINT": weed.endpoint,
        "ACTSTORE_S3_SECURE": "0",
    }


def _parts(
    options: argparse.Namespace, folder: Path, store: dict[str, str], ports: dict[str, int], metrics: dict[str, int]
) -> Iterator[Part]:
    """Yields each process, in the order in which they start."""
    shared = {**store, "ACTSTORE_CONFIG": str(folder / "actstore.toml")}
    workers = {
        **shared,
        "ACTSTORE_S3_CREDENTIALS_FILE": str(folder / "store-writer"),
        "ACTSTORE_GATEWAY_PORT": str(ports["gateway"]),
        "ACTSTORE_WORKER_METRICS_LISTEN": f"127.0.0.1:{metrics['workers']}",
        "ACTSTORE_MODEL_FOLDERS": os.pathsep.join(str(one.resolve()) for one in options.models),
        "ACTSTORE_DATASET_FOLDERS": os.pathsep.join(str(one.resolve()) for one in [*options.datasets, CANARY]),
    }
    if not options.without_workers:
        yield Part("workers", [sys.executable, "-P", "-m", "actstore_worker"], workers, folder)
    for name in SERVICES:
        service = {
            **shared,
            "ACTSTORE_S3_CREDENTIALS_FILE": str(folder / "store-reader"),
            "ACTSTORE_LISTEN": f"127.0.0.1:{ports[name]}",
            "ACTSTORE_METRICS_LISTEN": f"127.0.0.1:{metrics[name]}",
            "ACTSTORE_GATEWAY": f"127.0.0.1:{ports['gateway']}",
        }
        yield Part(name, [sys.executable, "-P", "-m", "actstore_service"], service, folder)
    if options.prometheus:
        yield Part("prometheus", _prometheus(options.prometheus, folder, ports, metrics), {}, folder)


def _prometheus(program: str, folder: Path, ports: dict[str, int], metrics: dict[str, int]) -> list[str]:
    """The command, whose configuration names what is scraped and which rules there are."""
    found = shutil.which(program)
    if found is None:
        sys.exit(f"up.py: there is no program {program}: `make monitoring-tools` unpacks Debian's")
    targets = {"actstore-service": [metrics[name] for name in SERVICES], "actstore-workers": [metrics["workers"]]}
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in of_job]}]}
        for job, of_job in targets.items()
    ]
    configuration = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "scrape_configs": jobs,
        "rule_files": [str(file) for file in sorted(MONITORING.glob("*rules*.y*ml"))],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(configuration, indent=2))  # JSON is YAML
    return [
        found,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
    ]


def _say(folder: Path, ports: dict[str, int], metrics: dict[str, int], store: dict[str, str]) -> None:
    """Says where everything is, with what a client or a job needs to reach it."""
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    addresses |= {f"{name}-metrics": f"127.0.0.1:{port}" for name, port in metrics.items()}
    variables = {name.upper().replace("-", "_"): address for name, address in addresses.items()}
    variables |= {
        "ACTSTORE_ADDRESS": addresses[SERVICES[0]],
        "ACTSTORE_TLS": "1",
        "ACTSTORE_ROOT_CERTIFICATES": str(folder / "tls" / "ca.crt"),
        **store,
    }
    (folder / "addresses").write_text("".join(f"export {name}={value}\n" for name, value in variables.items()))
    print(json.dumps({"ready": "deployment", **addresses}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
