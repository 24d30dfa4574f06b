"""Measures a question about one feature, and compares with DuckDB, Polars and a scan like delphi's.

Features of a large SAE (16,384, the densest on a fifth of all tokens, the rarest on one in 3,500) in a local directory,
written and merged as the workers do, at a tenth of `--nonzeros` and at all of them; everything in the page cache. A
query is about a feature drawn at random, and each side answers it in turn, for the same features:

- top20: the 20 strongest activations of tokens that are not BOS, each with sequence, position and token id. All sides
  give the same rows, and are checked. Ours begins with a snapshot of the run and looks for segments anew; DuckDB has
  its connection open and the footer cached, and sorts and limits in SQL; Polars scans lazily; both read one file by
  feature in the row-group size that does best here, tried first. delphi's way is to load the file that has the feature
  among a fifth of all, and to take the rows that are the feature's.
- uniform20: one activation at random from each of 20 bins of equal width over the range; histogram: 40 bins, density,
  maximum and mean. Ours alone.
- `_windows`: the same with 19 tokens of text around each example, and at most one from a sequence, as a feature page
  shows them. What it adds is reading the text of up to 20 sequences anywhere in the run.
- `service_`: the same questions to a service process over the loopback by gRPC, each opening the run anew.

`bytes_per_query` are the bytes that a top20 reads from the store, in the mean over features, once the process has asked
about each of them before: the segment's manifest and the rows. `growth_10x` is top20's p50 at all of the nonzeros over
that at a tenth.

Predicted: a manifest, a listing and one row group of 72 kB: 0.3 ms, at any size; DuckDB looks at the statistics of each
row group, then decodes one or two of 65,536 rows: 30 ms; Polars the same with less around it: 4 ms; delphi's file of a
fifth of 64 M nonzeros: 400 ms. gRPC and opening the run add 1.5 ms.

Measured: 0.39 ms, DuckDB 10.5, Polars 3.9 (both on row groups of 262,144 rows), delphi 192; gRPC and the run 2.4.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import grpc
import numpy as np
import polars as pl
from safetensors.numpy import load_file

from actstore_api.v1 import feature_pb2, service_pb2_grpc
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.sampling import Sample, sample_examples, sampled
from actstore_storage.features.statistics import feature_statistics, top_examples
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from benchmarks.parts.counted_bucket import Reads, counted
from benchmarks.parts.feature_runs import D_SAE, RUN, SAE, Peers, segment_of, write_peers, write_run
from tests.service.process import running_service

NONZEROS, GROWTH = 64_000_000, 10
K, BINS = 20, 40
BOS = frozenset({"bos"})
QUERIES, SLOW_QUERIES, TRIED, TURN = 300, 10, 20, 30
ROW_GROUPS = (16_384, 65_536, 131_072, 262_144)
CALL_SECONDS = 60

Row = tuple[float, int, int]
Query = Callable[[int], Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--nonzeros", type=int, default=NONZEROS, help="of the larger run")
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        small, large = (Path(scratch) / name for name in ("small", "large"))
        for folder, nonzeros in ((small, options.nonzeros // GROWTH), (large, options.nonzeros)):
            began = time.perf_counter()
            (folder / "store").mkdir(parents=True)
            write_run(str(folder / "store"), nonzeros)
            print(f"{nonzeros:,} nonzeros written and merged in {time.perf_counter() - began:.0f} s")
        found = measure(small, large)
    for name, value in found.items():
        print(f"{name:<34}{value:>14,}")
    if options.json:
        print(json.dumps(found))


def measure(small: Path, large: Path) -> dict[str, float]:
    buckets = [open_bucket(str(folder / "store")) for folder in (small, large)]
    features = np.random.default_rng(0).integers(0, D_SAE, QUERIES).tolist()
    peers = write_peers(buckets[1], large, ROW_GROUPS)
    ours = [in_process(open_run(bucket, RUN)) for bucket in buckets]
    with peer_queries(peers, features) as theirs:
        milliseconds = timed({"top20": ours[1]["top20"]} | theirs, features)
        milliseconds |= timed({name: query for name, query in ours[1].items() if name != "top20"}, features)
        slow = timed({"delphi": lambda feature: delphi_top(peers, feature)}, features[:SLOW_QUERIES])
        check_answers(ours[1]["top20"], {**theirs, "delphi": lambda feature: delphi_top(peers, feature)}, features)
    growing = timed({"before": ours[0]["top20"], "after": ours[1]["top20"]}, features)
    with service_queries(str(large / "store")) as through_service:
        milliseconds |= timed(through_service, features)
    p50 = {name: statistics.median(each) for name, each in (milliseconds | slow).items()}
    found = {f"{name}_p50_ms": round(value, 3) for name, value in p50.items()}
    found |= {f"{name}_p99_ms": round(float(np.percentile(each, 99)), 3) for name, each in milliseconds.items()}
    found |= {f"ratio_to_{peer}": round(p50[peer] / p50["top20"], 1) for peer in ("duckdb", "polars", "delphi")}
    found |= {"growth_10x": round(statistics.median(growing["after"]) / statistics.median(growing["before"]), 2)}
    found |= bytes_read(str(large / "store"), features)
    return found | {"nonzeros": sum(part.object.rows for part in segment_of(buckets[1]).parts)}


def in_process(snapshot: Snapshot) -> dict[str, Query]:
    uniform = Sample("range", k=K)

    def ranking(feature: int) -> Any:
        return FeatureReader(snapshot, SAE).ranking(feature, BOS)

    return {
        "top20": lambda feature: ranking(feature).head(K),
        "uniform20": lambda feature: sampled(ranking(feature), uniform),
        "histogram": lambda feature: feature_statistics(snapshot, SAE, feature, bins=BINS),
        "top20_windows": lambda feature: top_examples(snapshot, SAE, feature, k=K),
        "uniform20_windows": lambda feature: sample_examples(snapshot, SAE, feature, uniform),
    }


@contextmanager
def service_queries(address: str) -> Iterator[dict[str, Query]]:
    """`service_top20` and `_uniform20` without text around the token."""
    with (
        running_service(ACTSTORE_STORE=address, ACTSTORE_ANONYMOUS="reader") as ready,
        grpc.insecure_channel(ready["address"]) as channel,
    ):
        service = service_pb2_grpc.FeatureServiceStub(channel)

        def examples(method: feature_pb2.SampleMethod, feature: int, **window: int) -> Any:
            request = feature_pb2.SampleExamplesRequest(run=RUN, sae=SAE, features=[feature], method=method, k=K)
            for name, tokens in window.items():
                setattr(request, name, tokens)
            return service.SampleExamples(request, timeout=CALL_SECONDS)

        def histogram(feature: int) -> Any:
            request = feature_pb2.GetFeatureStatisticsRequest(run=RUN, sae=SAE, feature=feature, bins=BINS)
            return service.GetFeatureStatistics(request, timeout=CALL_SECONDS)

        top = partial(examples, feature_pb2.SAMPLE_METHOD_TOP)
        uniform = partial(examples, feature_pb2.SAMPLE_METHOD_RANGE)
        yield {
            "service_top20": lambda feature: top(feature, tokens_before=0, tokens_after=0),
            "service_uniform20": lambda feature: uniform(feature, tokens_before=0, tokens_after=0),
            "service_histogram": histogram,
            "service_top20_windows": top,
            "service_uniform20_windows": uniform,
        }


@contextmanager
def peer_queries(peers: Peers, features: list[int]) -> Iterator[dict[str, Query]]:
    """Each tool uses the row-group size with which it is fastest over some of these features."""
    with duckdb.connect() as connection:
        connection.execute("SET parquet_metadata_cache = true")
        ways: dict[str, Callable[[Path, int], list[Row]]] = {
            "duckdb": lambda path, feature: duckdb_top(connection, path, feature),
            "polars": polars_top,
        }
        chosen: dict[str, Query] = {}
        for name, way in ways.items():
            queries = {str(size): _of_file(way, path) for size, path in peers.parquet.items()}
            medians = {size: statistics.median(each) for size, each in timed(queries, features[:TRIED]).items()}
            best = min(medians, key=lambda size: medians[size])
            print(f"{name} is fastest on row groups of {best} rows: {medians}")
            chosen[name] = queries[best]
        yield chosen


def _of_file(way: Callable[[Path, int], list[Row]], path: Path) -> Query:
    return lambda feature: way(path, feature)


def duckdb_top(connection: duckdb.DuckDBPyConnection, path: Path, feature: int) -> list[Row]:
    query = f"""
        SELECT activation, sequence, position, token FROM read_parquet('{path}') WHERE feature = ? AND flags & 1 = 0
        ORDER BY activation DESC, sequence, position LIMIT {K}
    """  # noqa: S608  our own path
    return [row[:3] for row in connection.execute(query, [feature]).fetchall()]


def polars_top(path: Path, feature: int) -> list[Row]:
    rows = pl.scan_parquet(path).filter((pl.col("feature") == feature) & (pl.col("flags") & 1 == 0))
    order = ["activation", "sequence", "position"]
    best = rows.select(*order, "token").sort(order, descending=[True, False, False]).head(K).collect()
    return [row[:3] for row in best.rows()]


def delphi_top(peers: Peers, feature: int) -> list[Row]:
    """Position 0 is BOS, for which delphi has no flag."""
    [path] = [path for path in peers.delphi if feature in _features_of(path)]
    tensors = load_file(path)
    locations, activations = tensors["locations"], tensors["activations"]
    chosen = (locations[:, 2] == feature) & (locations[:, 1] != 0)
    locations, activations = locations[chosen], activations[chosen]
    order = np.lexsort((locations[:, 1], locations[:, 0], -activations))[:K]
    return list(zip(activations[order].tolist(), *locations[order, :2].T.tolist(), strict=True))


def _features_of(path: Path) -> range:
    first, last = map(int, path.stem.split("_"))
    return range(first, last + 1)


def timed(queries: dict[str, Query], features: list[int]) -> dict[str, list[float]]:
    """Milliseconds of each query about each feature. Sides take turns after some features, and all have been asked
    about each feature before.
    """
    found: dict[str, list[float]] = {name: [] for name in queries}
    for query in queries.values():
        for feature in features:
            query(feature)
    for first in range(0, len(features), TURN):
        for name, query in queries.items():
            for feature in features[first : first + TURN]:
                began = time.perf_counter()
                query(feature)
                found[name].append((time.perf_counter() - began) * 1e3)
    return found


def check_answers(ours: Query, others: dict[str, Query], features: list[int]) -> None:
    for feature in features[:SLOW_QUERIES]:
        best = ours(feature)
        expected = list(zip(best.activation.tolist(), best.sequence.tolist(), best.position.tolist(), strict=True))
        for name, query in others.items():
            if query(feature) != expected:
                raise RuntimeError(f"{name} answers otherwise about feature {feature}")


def bytes_read(address: str, features: list[int]) -> dict[str, float]:
    """On average, by a process that has asked the same before."""
    reads = Reads()
    queries = in_process(open_run(counted(open_bucket(address), reads), RUN))
    found: dict[str, float] = {}
    for name in ("top20", "uniform20", "histogram", "top20_windows"):
        for feature in features:
            queries[name](feature)
        reads.forget()
        for feature in features:
            queries[name](feature)
        key = "bytes_per_query" if name == "top20" else f"bytes_per_{name}"
        found[key] = round(reads.bytes / len(features))
        found[f"reads_per_{name}"] = round(reads.reads / len(features), 1)
    return found


if __name__ == "__main__":
    main()
