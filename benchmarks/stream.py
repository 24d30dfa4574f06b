"""Activation rows through the service against Arrow Flight, which is gRPC with Arrow's own framing, on the same table.

128 MiB of bfloat16 rows of d_model 768 with their token columns, read by the client into one table. Flight serves the
table from memory; the service reads it from Parquet in a local directory, checks every page, and hands it on in
messages of two megabytes. Both servers are processes of their own, on the loopback.

`ratio_to_flight` compares with a Flight server that holds the table in memory, so that the service's reading and
checking counts against it; `ratio_to_flight_from_store` with one that reads the same Parquet with the same checks.

Predicted: Flight copies once on each side, 1.0 to 1.5 GB/s; the service reads a row group at 1.8 GB/s beside that, and
protobuf copies each message twice more: 0.7 of Flight where the second core reads while the first one sends.

Measured: Flight 2.2 GB/s, the service 0.25 of it through protobuf's own encoding, and 0.5 with rows encoded by hand,
read ahead, and kept in pages that are in use already. docs/benchmarks.md says where the rest goes.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight

import actstore
from actstore_storage.opening import open_bucket
from actstore_storage.rows import read_activations
from actstore_storage.runs import open_run
from benchmarks import training_read
from tests.service.process import running_service

SHARDS, ROUNDS = 2, 7


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
        print(f"{name:<34}{value:>10,}")
    if options.json:
        print(json.dumps(found))


def measure(address: str) -> dict[str, float]:
    ours, megabytes = [], 0.0
    theirs: dict[str, list[float]] = {"memory": [], "store": []}
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(address, there), daemon=True)
    server.start()
    client = flight.connect(f"grpc://127.0.0.1:{here.recv()}")
    with running_service(ACTSTORE_STORE=address) as ready, actstore.connect(ready["address"]) as lab:
        run = lab.run("run")
        for _ in range(ROUNDS):
            for place, taken in theirs.items():
                began = time.perf_counter()
                table = client.do_get(flight.Ticket(place)).read_all()
                taken.append(time.perf_counter() - began)
            began = time.perf_counter()
            answer = run.activations(training_read.SITE)
            ours.append(time.perf_counter() - began)
            if not answer.to_arrow().equals(table):
                raise RuntimeError("the two answers differ")
            megabytes = table.nbytes / 1e6
    server.kill()
    timed = {"service": ours, "flight": theirs["memory"], "flight_from_store": theirs["store"]}
    speeds = {name: megabytes / statistics.median(taken) for name, taken in timed.items()}
    return {
        "ratio_to_flight": round(speeds["service"] / speeds["flight"], 3),
        "ratio_to_flight_from_store": round(speeds["service"] / speeds["flight_from_store"], 3),
        **{f"{name}_megabytes_per_second": round(speed) for name, speed in speeds.items()},
        "megabytes": round(megabytes),
    }


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
