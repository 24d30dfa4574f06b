"""Compares streaming rows through the service with Arrow Flight, which is gRPC with Arrow's own framing.

128 MiB of bfloat16 rows of d_model 768 with their token columns, read by the client into one table. Servers are
processes of their own, on the loopback. Like is compared with like:

`ratio_to_flight`             both have the rows in memory: Flight its table, the service the row groups that it read
                              and verified before (ACTSTORE_HELD_ROW_BYTES bounds them).
`ratio_to_flight_from_store`  both read the same Parquet from a local directory and check every page, each time.
`ratio_store_to_flight`       the service reads and checks each time, and Flight has its table in memory.

Predicted: Flight copies once on each side, 1.0 to 1.5 GB/s; gRPC for Python copies each message once more on the server
and three times on the client, which two cores share: 0.7 of Flight from memory. Reading and checking take 25 and 37 ms
of a core beside Flight's 57 to 110 ms of both: 0.5 to 0.65 where only the service reads.

docs/explanation/benchmarks.md has what was measured, and where the rest goes.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight

import actstore
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.rows.reading import read_activations
from actstore_storage.runs.opening import open_run
from benchmarks import training_read
from tests.service.process import running_service

SHARDS, ROUNDS = 2, 15


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "store").mkdir()
        address = str(Path(scratch) / "store")
        training_read.write(open_bucket(address), "run", SHARDS, Path(scratch) / "plain")
        found = measure(address)
    for name, value in found.items():
        print(f"{name:<42}{value:>10,}")
    if options.json:
        print(json.dumps(found))


def measure(address: str) -> dict[str, float]:
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(address, there), daemon=True)
    server.start()
    with ExitStack() as stack:
        client = flight.connect(f"grpc://127.0.0.1:{here.recv()}")
        sides: dict[str, Callable[[], pa.Table]] = {
            place: lambda place=place: client.do_get(flight.Ticket(place)).read_all() for place in ("memory", "store")
        }
        for name, held in {"service": Settings.held_row_bytes, "service_from_store": 0}.items():
            service = running_service(
                ACTSTORE_STORE=address, ACTSTORE_HELD_ROW_BYTES=str(held), ACTSTORE_ANONYMOUS="reader"
            )
            ready = stack.enter_context(service)
            run = stack.enter_context(actstore.connect(ready["address"])).run("run")
            sides[name] = lambda run=run: run.activations(training_read.SITE).table
        table = sides["memory"]()
        seconds = timed(sides, table)
    server.kill()
    speeds = {name: table.nbytes / 1e6 / taken for name, taken in seconds.items()}
    return {
        "ratio_to_flight": round(speeds["service"] / speeds["memory"], 3),
        "ratio_to_flight_from_store": round(speeds["service_from_store"] / speeds["store"], 3),
        "ratio_store_to_flight": round(speeds["service_from_store"] / speeds["memory"], 3),
        "service_megabytes_per_second": round(speeds["service"]),
        "service_from_store_megabytes_per_second": round(speeds["service_from_store"]),
        "flight_megabytes_per_second": round(speeds["memory"]),
        "flight_from_store_megabytes_per_second": round(speeds["store"]),
        "megabytes": round(table.nbytes / 1e6),
    }


def timed(sides: Mapping[str, Callable[[], pa.Table]], expected: pa.Table) -> dict[str, float]:
    """Median seconds of each side, in turns; the first answer of each is compared and not timed."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, ask in sides.items():
            began = time.perf_counter()
            found = ask()
            if number:
                taken[name].append(time.perf_counter() - began)
            elif not found.equals(expected):
                raise RuntimeError(f"the answer from {name} differs")
            del found
    return {name: statistics.median(values) for name, values in taken.items()}


def serve(address: str, ready: Connection) -> None:
    def rows() -> Iterator[pa.RecordBatch]:
        return read_activations(open_run(open_bucket(address), "run"), training_read.SITE)

    table = pa.Table.from_batches(list(rows()))

    class Server(flight.FlightServerBase):
        def do_get(self, context: object, ticket: flight.Ticket) -> flight.FlightDataStream:  # noqa: ARG002
            if ticket.ticket == b"memory":
                return flight.RecordBatchStream(table)
            return flight.GeneratorStream(table.schema, rows())

    server = Server("grpc://127.0.0.1:0")
    ready.send(server.port)
    server.serve()


if __name__ == "__main__":
    main()
