"""Random runs, and the questions of the store answered slowly from their raw rows: the twins of the fast answers."""

import math
from dataclasses import dataclass, replace
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import commit_key
from actstore_storage.format.products import NORM_SKETCHES
from actstore_storage.format.specification import RunRecord, SaeRecord, Specification
from actstore_storage.format.tokens import BOS, SPECIAL
from actstore_storage.registry.models import ModelRecord, register_model
from actstore_storage.registry.saes import SaeModelRecord, register_sae
from actstore_storage.runs.document_sources import WHOLE, DocumentSources
from actstore_storage.runs.feature_index import SparseFeatures
from actstore_storage.runs.opening import create_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows

VOCABULARY = 50
TEXTS = [f"<{token}>" for token in range(VOCABULARY)]
SAE = "sae"
NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


@dataclass(frozen=True)
class RandomRun:
    """All rows of a run, token-major, as they go into its shards. `features` is dense: [rows, d_sae]."""

    record: RunRecord
    tokens: TokenRows
    dense: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    features: np.ndarray

    def part(self, chosen: np.ndarray) -> tuple[TokenRows, dict, dict, dict]:
        """What ShardWriter.add takes for some rows."""
        values = self.features[chosen]
        row, feature = np.nonzero(values)
        tokens = TokenRows(*(getattr(self.tokens, name)[chosen] for name in TokenRows.__dataclass_fields__))
        sparse = SparseFeatures(row, feature.astype(np.int32), values[row, feature])
        dense = {site: rows[chosen] for site, rows in self.dense.items()}
        return tokens, dense, {site: rows[chosen] for site, rows in self.norms.items()}, {SAE: sparse}

    @property
    def sources(self) -> DocumentSources:
        """Every fourth document is a file of its own."""
        numbers = np.unique(self.tokens.document)
        files = np.array([f"file-{number % 3}" for number in numbers], np.object_)
        return DocumentSources(numbers, files, np.where(numbers % 4, numbers, WHOLE))

    def kept(self, exclude: frozenset[str]) -> np.ndarray:
        bos = self.tokens.flags & BOS != 0
        special = (self.tokens.flags & SPECIAL != 0) & ~bos
        return ~(bos & ("bos" in exclude)) & ~(special & ("special" in exclude))


def make_run(
    seed: int,
    *,
    sequences: int = 11,
    longest: int = 14,
    layers: int = 4,
    d_model: int = 8,
    d_sae: int = 6,
    dtype: str = "float32",
    sequences_per_shard: int = 3,
) -> RandomRun:
    """Sequences of 1 to `longest` tokens; activations from few values, so that many tie."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, sequences)
    rows = int(lengths.sum())
    position = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    flags = np.where(rng.random(rows) < 0.1, SPECIAL, 0) | np.where(position == 0, BOS | SPECIAL, 0)
    sites = tuple(f"{kind}.{layer}" for layer in range(layers) for kind in ("resid_pre", "resid_post"))
    specification = Specification(
        model="model",
        model_revision="",
        weights_sha256="a" * 64,
        tokenizer_sha256="b" * 64,
        dataset="text",
        dataset_sha256="c" * 64,
        text_field="text",
        max_tokens=None,
        context_length=longest,
        prepend_bos=True,
        dense_sites=(f"resid_post.{layers - 1}", "resid_pre.0"),
        norm_sites=sites,
        saes=(SaeRecord(SAE, "d" * 64, "resid_post.1", d_sae),),
        dtype=dtype,
        sequences_per_shard=sequences_per_shard,
        sequences_per_batch=2,
    )
    record = RunRecord(
        "run", specification, specification.sha256, sequences, rows, layers, d_model, "sdpa", "cpu", "0",
        document_sources=True,
    )  # fmt: skip
    sequence = np.repeat(np.arange(sequences), lengths)
    active = rng.random((rows, d_sae)) < np.linspace(0, 1, d_sae)  # feature 0 never fires, the last one always
    return RandomRun(
        record,
        TokenRows(
            sequence.astype(np.int64),
            position,
            (sequence // 2).astype(np.int64),
            rng.integers(0, VOCABULARY, rows).astype(np.int32),
            flags.astype(np.uint8),
        ),
        {site: random_bits(rng, rows, d_model, dtype) for site in specification.dense_sites},
        {site: (rng.lognormal(size=rows) * (1 + 100 * (position == 0))).astype(np.float32) for site in sites},
        (active * rng.integers(1, 9, (rows, d_sae)) / 7).astype(np.float32),
    )


def random_bits(rng: np.random.Generator, rows: int, d_model: int, dtype: str) -> np.ndarray:
    """Any bits at all: infinities, NaNs with payloads, subnormal and negative zeros must come back as they were."""
    kind = np.dtype(NUMPY_TYPES[dtype])
    raw = rng.integers(0, 256, (rows, d_model * kind.itemsize), dtype=np.uint8)
    return raw.view(kind)


def write_run(
    bucket: Bucket,
    run: RandomRun,
    shards: tuple[int, ...] | None = None,
    batch_sequences: int = 2,
    chosen: np.ndarray | None = None,
) -> None:
    """`chosen`: the rows of which dense sites are stored, where the run does not store them all."""
    begin(bucket, run.record)
    for shard in range(run.record.shards_total) if shards is None else shards:
        assert write_shard(bucket, run, shard, "attempt", batch_sequences, chosen)


def put_made_run(bucket: Bucket, seed: int, **options: Any) -> None:
    """`write_run` of `make_run(seed, **options)`, which a process writes once: then its objects are put as they are."""
    for key, data in _written(seed, tuple(sorted(options.items()))).items():
        bucket.put(key, data)


@cache
def _written(seed: int, options: tuple[tuple[str, Any], ...]) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        bucket = open_bucket(folder)
        write_run(bucket, make_run(seed, **dict(options)))
        return {key: bucket.get(key) for top in bucket.top()[1] for key in bucket.keys(top)}


def begin(bucket: Bucket, record: RunRecord) -> None:
    """Creates the run, and registers its model and SAEs."""
    create_run(bucket, record)
    model = ModelRecord("model", "", "a" * 64, "b" * 64, "gpt2", 4, 8, 2, VOCABULARY, 64)
    register_model(bucket, model, TEXTS)
    for sae in record.specification.saes:
        register_sae(bucket, SaeModelRecord(sae.name, sae.sha256, "standard", sae.site, 8, sae.d_sae, "model"))


def write_shard(
    bucket: Bucket, run: RandomRun, shard: int, attempt: str, batch_sequences: int = 2, chosen: np.ndarray | None = None
) -> bool:
    held = run.record.shard_sequences(shard)
    sources = run.sources.take(run.tokens.document[np.isin(run.tokens.sequence, held)])
    with ShardWriter(bucket, run.record, shard, attempt, sources=sources) as writer:
        for first in range(held.start, held.stop, batch_sequences):
            last = min(first + batch_sequences, held.stop)
            rows = (run.tokens.sequence >= first) & (run.tokens.sequence < last)
            tokens, dense, norms, features = run.part(rows)
            if chosen is None:
                writer.add(tokens, dense, norms, features)
                continue
            dense = {site: values[chosen[rows]] for site, values in dense.items()}
            writer.add(tokens, dense, norms, features, np.flatnonzero(chosen[rows]).astype(np.int32))
        return writer.commit()


def without_sketches(bucket: Bucket, shard: int, run: str = "run") -> None:
    """The shard as one that was captured before there were any."""
    key = commit_key(run, shard)
    commit = Commit.from_json(bucket.get(key), key)
    objects = {name: item for name, item in commit.objects.items() if name != NORM_SKETCHES}
    bucket.delete(commit.objects[NORM_SKETCHES].key)
    bucket.delete(key)
    assert bucket.put_if_absent(key, replace(commit, objects=objects).to_json())


def slow_top_examples(
    run: RandomRun, feature: int, k: int, before: int, after: int, exclude: frozenset[str]
) -> list[dict]:
    """Look at every row; keep each sequence's strongest; sort."""
    tokens, kept, values = run.tokens, run.kept(exclude), run.features[:, feature]
    best: dict[int, int] = {}
    for row in range(len(values)):
        sequence = int(tokens.sequence[row])
        if kept[row] and values[row] > 0 and (sequence not in best or values[row] > values[best[sequence]]):
            best[sequence] = row
    strongest = sorted(best.values(), key=lambda row: (-values[row], tokens.sequence[row], tokens.position[row]))[:k]
    found = []
    for rank, row in enumerate(strongest, start=1):
        near = range(max(0, row - before), min(len(values), row + after + 1))
        window = [other for other in near if tokens.sequence[other] == tokens.sequence[row]]
        found.append(
            {
                "rank": rank,
                "activation": values[row],
                "sequence": tokens.sequence[row],
                "position": tokens.position[row],
                "document": (document := tokens.document[row]),
                "source": f"file-{document % 3}",
                "row": document if document % 4 else None,
                "first_position": tokens.position[window[0]],
                "tokens": [tokens.token[other] for other in window],
                "texts": [TEXTS[tokens.token[other]] for other in window],
                "activations": [values[other] for other in window],
            }
        )
    return found


def slow_growth(means: list[float], layers: list[int]) -> tuple[float, float]:
    """Rate and R^2 by numpy's least squares, which is not how the library does it."""
    logs = np.log(means)
    design = np.stack([layers, np.ones(len(layers))], axis=1)
    solution, *_ = np.linalg.lstsq(design, logs, rcond=None)
    residual = logs - design @ solution
    total = logs - logs.mean()
    return math.exp(solution[0]), 1 - float(residual @ residual) / float(total @ total)
