"""Random specifications: written, read back, and the rows of runs of them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.format import specification
from actstore_storage.format.positions import KINDS_BY_PLACE, selected
from actstore_storage.format.specification import (
    DTYPES,
    FORMAT_VERSION,
    FORMATS_WRITTEN,
    Positions,
    RowFilter,
    RunRecord,
    SaeRecord,
    Specification,
    written_format,
)
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.tokens import shard_tokens
from actstore_storage.upkeep.fsck import check_runs
from actstore_storage.upkeep.removal import remove_run
from tests.storage.random_run import SAE, RandomRun, begin, make_run

TEXT = st.text(max_size=12)
SCALARS = st.one_of(TEXT, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans())
FILTERS = st.one_of(
    st.builds(RowFilter, TEXT, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), SCALARS),
    st.builds(RowFilter, TEXT, st.sampled_from(["in", "not in"]), st.lists(SCALARS, max_size=3).map(tuple)),
)
POSITIONS = st.builds(
    Positions,
    kind=st.sampled_from([*KINDS_BY_PLACE, "feature"]),
    stride=st.integers(1, 7),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**64 - 1),
    sae=st.just(SAE),
    feature=st.integers(0, 5),
)
COUNTS = st.integers(1, 2**40)
SPECIFICATIONS = st.builds(
    Specification,
    model=TEXT, model_revision=TEXT, weights_sha256=TEXT, tokenizer_sha256=TEXT, dataset=TEXT, dataset_sha256=TEXT,
    text_field=TEXT, max_tokens=st.none() | COUNTS, context_length=COUNTS, prepend_bos=st.booleans(),
    dense_sites=st.lists(TEXT, max_size=3).map(tuple), norm_sites=st.lists(TEXT, max_size=3).map(tuple),
    saes=st.lists(st.builds(SaeRecord, TEXT, TEXT, TEXT, COUNTS), max_size=2).map(tuple),
    dtype=st.sampled_from(sorted(DTYPES)), sequences_per_shard=COUNTS, sequences_per_batch=COUNTS,
    storage_dtype=st.sampled_from(["", *DTYPES]), widen_on_overflow=st.booleans(), packing=st.booleans(),
    positions=POSITIONS, tokens_field=TEXT, row_filters=st.lists(FILTERS, max_size=2).map(tuple),
    max_documents=st.none() | COUNTS, sink_ratio=st.none() | st.floats(1, 1e6), rows_of=TEXT,
    config_sha256=TEXT, attention_implementation=TEXT,
    marked_special=st.booleans(),
    source_field=TEXT,
)  # fmt: skip


@given(specification=SPECIFICATIONS, widths=st.dictionaries(TEXT, COUNTS, max_size=2), other=SPECIFICATIONS)
def test_a_record_is_read_as_it_was_written(
    specification: Specification, widths: dict[str, int], other: Specification
) -> None:
    digest = specification.sha256
    record = RunRecord("run", specification, digest, 1, 2, 3, 4, "sdpa", "cpu", "0.1.0", widths)
    read = RunRecord.from_json(record.to_json(), "run.json")
    assert read == record
    assert read.specification.sha256 == digest
    # Not by ==, for which a filter's 0, 0.0 and False are one value: JSON and the hash tell them apart.
    assert (other.sha256 == digest) == (repr(other) == repr(specification))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32), dtype=st.sampled_from(sorted(DTYPES)), storage=st.sampled_from(["", *DTYPES]),
    positions=POSITIONS, widened=st.sets(st.integers(0, 9)), per_shard=st.integers(1, 5), per_batch=st.integers(1, 4),
)  # fmt: skip
def test_rows_of_a_random_run_come_back(
    seed: int, dtype: str, storage: str, positions: Positions, widened: set[int], per_shard: int, per_batch: int,
    local_bucket: Bucket,
) -> None:  # fmt: skip
    run = with_specification(
        make_run(seed, dtype=dtype, sequences_per_shard=per_shard), storage_dtype=storage, positions=positions
    )
    site = run.record.specification.dense_sites[0]
    rng = np.random.default_rng(seed)
    rows = len(run.tokens.token)
    stored = run.record.specification.stored_dtype
    # Finite values of few digits, which every element type holds.
    values = {
        name: rng.integers(-64, 64, (rows, 8)).astype(np.float32) for name in run.record.specification.dense_sites
    }
    if positions.kind == "feature":
        chosen = run.features[:, positions.feature] > 0
    else:
        chosen = selected(positions, run.tokens.sequence, run.tokens.position)
    write(local_bucket, run, values, chosen, dict.fromkeys(widened, (site,)), per_batch)
    snapshot = open_run(local_bucket, "run")
    assert snapshot.record == run.record
    assert check_runs(local_bucket).sound
    for name, expected in values.items():
        table = pa.Table.from_batches(list(read_activations(snapshot, name)))
        kind = table.schema.field("activation").metadata[b"dtype"].decode()
        wide = name == site and any(shard in widened for shard in range(run.record.shards_total))
        assert kind == ("float32" if wide else stored)
        np.testing.assert_array_equal(dense_matrix(table["activation"], kind, 8), expected[chosen])
        for column in ("sequence", "position", "document", "token", "flags"):
            np.testing.assert_array_equal(table[column].to_numpy(), getattr(run.tokens, column)[chosen])
    every = pa.concat_tables([shard_tokens(local_bucket, commit) for commit in snapshot.commits])
    np.testing.assert_array_equal(every["token"].to_numpy(), run.tokens.token)
    remove_run(local_bucket, "run")


def with_specification(run: RandomRun, **change: object) -> RandomRun:
    specification = replace(run.record.specification, **change)
    return replace(
        run, record=replace(run.record, specification=specification, specification_sha256=specification.sha256)
    )


def write(
    bucket: Bucket,
    run: RandomRun,
    values: dict[str, np.ndarray],
    chosen: np.ndarray,
    widened: dict[int, tuple[str, ...]],
    per_batch: int,
) -> None:
    begin(bucket, run.record)
    selects = run.record.specification.positions.kind != "all"
    for shard in range(run.record.shards_total):
        held, wide = run.record.shard_sequences(shard), widened.get(shard, ())
        with ShardWriter(bucket, run.record, shard, "attempt", wide) as writer:
            for first in range(held.start, held.stop, per_batch):
                last = min(first + per_batch, held.stop)
                rows = (run.tokens.sequence >= first) & (run.tokens.sequence < last)
                tokens, _, norms, features = run.part(rows)
                dtypes = dict.fromkeys(values, run.record.specification.stored_dtype) | dict.fromkeys(wide, "float32")
                dense = {name: bits(matrix[rows & chosen], dtypes[name]) for name, matrix in values.items()}
                picked = np.flatnonzero(chosen[rows]).astype(np.int32) if selects else None
                writer.add(tokens, dense, norms, features, picked)
            assert writer.commit()


def bits(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def test_sinks_were_looked_for_where_there_are_norms_to_tell_them_by() -> None:
    asked = make_run(0).record.specification
    with_ratio = replace(asked, sink_ratio=10.0)
    found = [asked, with_ratio, replace(with_ratio, norm_sites=("resid_pre.0",)), replace(with_ratio, norm_sites=())]
    assert [specification.sinks_above for specification in found] == [0, 10, 0, 0]


def test_a_run_has_the_lowest_format_that_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a format 5 that is yet to come, and brings rows of other runs anew."""
    plain = make_run(3).record.specification
    over = replace(plain, rows_of="other")
    assert written_format(plain) == written_format(over) == FORMAT_VERSION == FORMATS_WRITTEN[-1]
    monkeypatch.setattr(specification, "FORMATS_WRITTEN", (4, 5))
    monkeypatch.setattr(specification, "_FEATURES", {"hashes of records": 4, "rows of another run": 5})
    assert (written_format(plain, 5), written_format(over, 5)) == (4, 5)
    assert written_format(plain, 4) == 4
    with pytest.raises(BadRequest, match=r"rows of another run \(format version 5\).* 4 at most") as refused:
        written_format(over, 4)
    assert refused.value.reason == "FORMAT_PINNED"
    assert refused.value.details == {"field": "format_version", "value": "5", "allowed": "at most 4"}
