"""What is written is what is read, bit for bit, once or not at all."""

import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError, CorruptObject
from actstore_storage.format.commit import Commit
from actstore_storage.format.moments import Moments
from actstore_storage.rows.reading import BATCH_BYTES, dense_matrix, read_activations, read_tokens
from actstore_storage.runs.feature_index import FeatureIndex, SparseFeatures, sorted_by_key
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from tests.run_state import committed_shards
from tests.storage.random_run import SAE, TEXTS, RandomRun, make_run, random_bits, write_run, write_shard


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


def product_table(snapshot: Snapshot, shard: int, product: str) -> pa.Table:
    with snapshot.bucket.open(snapshot.commits[shard].objects[product].key) as file:
        return pq.ParquetFile(file).read()


def check_everything(snapshot: Snapshot, run: RandomRun) -> None:
    """Raw rows, norms, features and both orders of them equal what was given."""
    check_rows(snapshot, run)
    for site, values in run.norms.items():
        stored = [product_table(snapshot, shard, "norms")[site].to_numpy() for shard in range(len(snapshot.commits))]
        assert np.concatenate(stored).tobytes() == values.tobytes()
    for commit in snapshot.commits:
        held = run.record.shard_sequences(commit.shard)
        chosen = (run.tokens.sequence >= held.start) & (run.tokens.sequence < held.stop)
        check_features(snapshot, commit, run.features[chosen], run.tokens.flags[chosen])


def check_rows(snapshot: Snapshot, run: RandomRun) -> None:
    for site, values in run.dense.items():
        batches = list(read_activations(snapshot, site))
        for name in ("sequence", "position", "document", "token", "flags"):
            stored = np.concatenate([batch[name].to_numpy() for batch in batches])
            assert stored.tolist() == getattr(run.tokens, name).tolist()
        assert b"".join(value.as_py() for batch in batches for value in batch["activation"]) == values.tobytes()
        assert batches[0].schema.field("activation").metadata[b"dtype"].decode() == run.record.specification.dtype
    texts = [text for batch in read_tokens(snapshot) for text in batch["text"].to_pylist()]
    assert texts == [TEXTS[token] for token in run.tokens.token]


def check_features(snapshot: Snapshot, commit: Commit, features: np.ndarray, flags: np.ndarray) -> None:
    row, feature = np.nonzero(features)
    token_major = list(zip(row.tolist(), feature.tolist(), features[row, feature].tolist(), strict=True))
    table = product_table(snapshot, commit.shard, f"features-{SAE}")
    assert (
        list(zip(*(table[name].to_pylist() for name in ("row", "feature", "activation")), strict=True)) == token_major
    )
    by_feature = sorted((f, -activation, r, int(flags[r])) for r, f, activation in token_major)
    index = product_table(snapshot, commit.shard, f"index-{SAE}")
    columns = (index[name].to_pylist() for name in ("feature", "activation", "row", "flags"))
    assert [(f, -a, r, bits) for f, a, r, bits in zip(*columns, strict=True)] == by_feature
    statistics = product_table(snapshot, commit.shard, f"statistics-{SAE}").to_pylist()
    assert statistics == slow_statistics(features, flags)


def slow_statistics(features: np.ndarray, flags: np.ndarray) -> list[dict]:
    found = []
    for feature in range(features.shape[1]):
        for name in ("text", "bos", "special"):
            of_class = [("bos" if bits & 1 else "special" if bits & 2 else "text") == name for bits in flags]
            values = [float(v) for v, chosen in zip(features[:, feature], of_class, strict=True) if chosen and v > 0]
            if values:
                maximum, total = max(values), pytest.approx(sum(values), rel=1e-12)
                row = {"feature": feature, "token_class": name, "count": len(values), "maximum": maximum, "sum": total}
                found.append(row)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_back_what_was_written(bucket: Bucket, dtype: str) -> None:
    run = make_run(1, dtype=dtype)
    write_run(bucket, run)
    check_everything(open_run(bucket, "run"), run)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    sequences=st.integers(1, 12),
    longest=st.integers(1, 30),
    d_model=st.integers(1, 40),
    d_sae=st.integers(1, 40),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    per_shard=st.integers(1, 13),
    batch=st.integers(1, 5),
)
def test_random_shards_read_back(
    seed: int, sequences: int, longest: int, d_model: int, d_sae: int, dtype: str, per_shard: int, batch: int
) -> None:
    run = make_run(
        seed,
        sequences=sequences,
        longest=longest,
        d_model=d_model,
        d_sae=d_sae,
        dtype=dtype,
        layers=2,
        sequences_per_shard=per_shard,
    )
    with TemporaryDirectory() as folder:
        bucket = open_bucket(folder)
        write_run(bucket, run, batch_sequences=batch)
        check_everything(open_run(bucket, "run"), run)


def test_rows_larger_than_a_batch_and_a_row_group(local_bucket: Bucket) -> None:
    run = make_run(4, sequences=9, longest=900, d_model=4096, sequences_per_shard=5)
    write_run(local_bucket, run, batch_sequences=2)
    snapshot = open_run(local_bucket, "run")
    batches = list(read_activations(snapshot, "resid_pre.0"))
    assert len(batches) > 5
    assert all(batch["activation"].nbytes <= BATCH_BYTES for batch in batches)
    for first, end in ((0, None), (3, 6), (8, 108), (2, 3)):
        sequence = run.tokens.sequence
        chosen = (sequence >= first) & (sequence < (99 if end is None else end))
        keep = TokenFilter(first_sequence=first, end_sequence=end)
        parts = list(read_activations(snapshot, "resid_pre.0", keep))
        assert (
            b"".join(v.as_py() for part in parts for v in part["activation"])
            == run.dense["resid_pre.0"][chosen].tobytes()
        )
        tokens = [t for b in read_tokens(snapshot, keep) for t in b["token"].to_pylist()]
        assert tokens == run.tokens.token[chosen].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_widening_is_exact_for_every_value(dtype: str) -> None:
    """All 65,536 bit patterns of the 16-bit types, against Python's own reading of them."""
    if dtype == "float32":
        bits = random_bits(np.random.default_rng(0), 4096, 16, dtype)
    else:
        bits = np.arange(65_536, dtype=np.uint16).reshape(4096, 16)
    column = pa.array([row.tobytes() for row in bits], pa.binary(16 * bits.itemsize))
    found = dense_matrix(column, dtype, 16)
    raw = bits.tobytes()
    if dtype == "bfloat16":
        expected = struct.unpack(f"<{bits.size}f", b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2)))
    else:
        expected = struct.unpack(f"<{bits.size}{'f' if dtype == 'float32' else 'e'}", raw)
    np.testing.assert_array_equal(found.ravel(), np.array(expected, np.float32))
    np.testing.assert_array_equal(dense_matrix(column.slice(100, 7), dtype, 16), found[100:107])
    assert dense_matrix(column.slice(0, 0), dtype, 16).shape == (0, 16)


def test_commit_states_what_its_objects_are(bucket: Bucket) -> None:
    run = make_run(2)
    write_run(bucket, run)
    for commit in open_run(bucket, "run").commits:
        assert set(commit.objects) == {
            "tokens", "norms", "norm-sketches", "resid_pre.0", "resid_post.3", "features-sae", "index-sae",
            "statistics-sae",
        }  # fmt: skip
        for record in commit.objects.values():
            data = bucket.get(record.key)
            assert (len(data), hashlib.sha256(data).hexdigest()) == (record.bytes, record.sha256)
            assert pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows == record.rows
        assert commit.objects["tokens"].rows == commit.objects["norms"].rows == commit.tokens
        assert commit.sequences == len(run.record.shard_sequences(commit.shard))


def test_non_finite_rows_of_a_dense_site_without_norms_are_counted(local_bucket: Bucket) -> None:
    from dataclasses import replace

    run = make_run(1, dtype="bfloat16")
    asked = replace(run.record.specification, norm_sites=())
    run = replace(run, record=replace(run.record, specification=asked, specification_sha256=asked.sha256), norms={})
    write_run(local_bucket, run)
    snapshot = open_run(local_bucket, "run")
    for site, bits in run.dense.items():
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
        expected = int((~np.isfinite(wide)).any(axis=1).sum())
        assert sum(commit.non_finite[site] for commit in snapshot.commits) == expected
    assert "norms" not in snapshot.commits[0].objects


def test_one_of_racing_attempts_is_the_shard_and_the_others_leave_nothing(bucket: Bucket) -> None:
    run = make_run(3)
    create_run(bucket, run.record)
    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(lambda attempt: write_shard(bucket, run, 1, f"attempt-{attempt}"), range(6)))
    assert won.count(True) == 1
    [commit] = open_run(bucket, "run").commits
    assert commit.attempt == f"attempt-{won.index(True)}"
    assert bucket.keys("runs/run/data") == sorted(record.key for record in commit.objects.values())


def test_an_abandoned_shard_leaves_nothing(bucket: Bucket) -> None:
    run = make_run(3)
    create_run(bucket, run.record)
    part = run.part(run.tokens.sequence == 0)
    with ShardWriter(bucket, run.record, 0, "quiet") as writer:
        writer.add(*part)
    with pytest.raises(ZeroDivisionError), ShardWriter(bucket, run.record, 0, "loud") as writer:  # noqa: PT012
        writer.add(*part)
        raise ZeroDivisionError
    assert bucket.keys("runs/run") == ["runs/run/run.json"]
    assert committed_shards(bucket, "run") == set()


def test_a_commit_whose_answer_was_lost_keeps_its_objects(local_bucket: Bucket) -> None:
    """The store took the commit and then the line went dead: removing the objects would destroy the shard."""
    run = make_run(3)
    create_run(local_bucket, run.record)
    put_if_absent = local_bucket.put_if_absent

    def lose_the_answer(key: str, data: bytes) -> bool:
        put_if_absent(key, data)
        raise ConnectionError

    local_bucket.put_if_absent = lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        write_shard(local_bucket, run, 0, "first")
    del local_bucket.put_if_absent
    assert not write_shard(local_bucket, run, 0, "second")
    [commit] = open_run(local_bucket, "run").commits
    assert commit.attempt == "first"
    assert local_bucket.keys("runs/run/data") == sorted(record.key for record in commit.objects.values())


def test_the_writer_may_be_given_the_same_buffers_again(local_bucket: Bucket) -> None:
    run = make_run(6, d_model=16)
    create_run(local_bucket, run.record)
    with ShardWriter(local_bucket, run.record, 0, "attempt") as writer:
        for sequence in run.record.shard_sequences(0):
            tokens, dense, norms, features = run.part(run.tokens.sequence == sequence)
            writer.add(tokens, dense, norms, features)
            for array in (*vars(tokens).values(), *dense.values(), *norms.values(), *vars(features[SAE]).values()):
                array[...] = 77
        assert writer.commit()
    snapshot = open_run(local_bucket, "run")
    chosen = run.tokens.sequence < run.record.shard_sequences(0).stop
    stored = b"".join(v.as_py() for b in read_activations(snapshot, "resid_pre.0") for v in b["activation"])
    assert stored == run.dense["resid_pre.0"][chosen].tobytes()
    check_features(snapshot, snapshot.commits[0], run.features[chosen], run.tokens.flags[chosen])


WRONG = {
    "rows out of order": lambda t, d, n, f: (type(t)(*(v[::-1] for v in vars(t).values())), d, n, f),
    "no rows": lambda t, d, n, f: (type(t)(*(v[:0] for v in vars(t).values())), d, n, f),
    "another shard's sequence": lambda t, d, n, f: (type(t)(t.sequence + 3, *list(vars(t).values())[1:]), d, n, f),
    "a site missing": lambda t, d, n, f: (t, {}, n, f),
    "norms missing": lambda t, d, n, f: (t, d, {}, f),
    "features missing": lambda t, d, n, f: (t, d, n, {}),
    "too few dense rows": lambda t, d, n, f: (t, {site: v[1:] for site, v in d.items()}, n, f),
    "another dtype": lambda t, d, n, f: (t, {site: v.astype(np.float64) for site, v in d.items()}, n, f),
    "norms as float64": lambda t, d, n, f: (t, d, {site: v.astype(np.float64) for site, v in n.items()}, f),
    "a negative activation": lambda t, d, n, f: (
        t, d, n, {SAE: SparseFeatures(f[SAE].row, f[SAE].feature, -f[SAE].activation)}
    ),
    "a feature past the SAE's": lambda t, d, n, f: (
        t, d, n, {SAE: SparseFeatures(f[SAE].row, f[SAE].feature + 6, f[SAE].activation)}
    ),
    "a row past the batch's": lambda t, d, n, f: (
        t, d, n, {SAE: SparseFeatures(f[SAE].row + 99, f[SAE].feature, f[SAE].activation)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_refuses_rows_that_do_not_fit_the_run(local_bucket: Bucket, what: str) -> None:
    run = make_run(3)
    create_run(local_bucket, run.record)
    with pytest.raises(ValueError, match=r"."), ShardWriter(local_bucket, run.record, 0, "attempt") as writer:  # noqa: PT012
        writer.add(*WRONG[what](*run.part(run.tokens.sequence < 3)))
        writer.commit()
    assert local_bucket.keys("runs/run") == ["runs/run/run.json"]


def test_refuses_rows_that_their_column_cannot_number() -> None:
    sparse = SparseFeatures(np.array([1]), np.array([2], np.int32), np.array([3], np.float32))
    flags = np.zeros(2, np.uint8)
    assert FeatureIndex(6).add(sparse, flags, 2**31 - 2).tolist() == [2**31 - 1]
    with pytest.raises(ValueError, match=str(2**31)):
        FeatureIndex(6).add(sparse, flags, 2**31 - 1)


def pairs_of(bits: int) -> st.SearchStrategy[tuple[int, list[tuple[int, int]]]]:
    """With their bits, keys of so many and rows of twenty."""
    pair = st.tuples(st.integers(0, 2**bits - 1), st.integers(0, 2**20 - 1))
    return st.tuples(st.just(bits), st.lists(pair, max_size=60, unique=True))


@given(st.sampled_from([44, 45, 64]).flatmap(pairs_of))
@example((45, [(2**44, 1), (0, 2)]))
def test_nonzeros_are_sorted_by_key_and_then_by_row(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    """As one number of key and row, and where both do not fit into it: from 45 bits on."""
    bits, pairs = drawn[0], sorted(drawn[1], key=lambda one: one[1])  # as they are gathered, by row
    keys, rows = (np.array([one[place] for one in pairs], kind) for place, kind in ((0, np.uint64), (1, np.int32)))
    found_keys, found_rows = sorted_by_key(keys, rows, bits, 2**20)
    assert list(zip(found_keys.tolist(), found_rows.tolist(), strict=True)) == sorted(pairs)
    assert (found_keys.dtype, found_rows.dtype) == (np.uint64, np.int32)


@pytest.mark.parametrize("d_sae", [6, 2**31 - 1], ids=["one number", "two"])
def test_the_index_is_by_feature_then_activation_then_row(d_sae: int) -> None:
    """Equal activations, the smallest and the largest float, and flags of their own rows, over two batches."""
    chosen = np.random.default_rng(7)
    values = np.array([np.nextafter(np.float32(0), np.float32(1)), 1, 1.5, np.finfo(np.float32).max], np.float32)
    index, expected, first = FeatureIndex(d_sae), [], 0
    for rows in (5, 40):
        flags = chosen.integers(0, 8, rows).astype(np.uint8)
        row = np.sort(chosen.choice(np.repeat(np.arange(rows), 6), 3 * rows, replace=False))
        feature, activation = np.empty(len(row), np.int32), chosen.choice(values, len(row))
        for one in range(rows):
            feature[row == one] = np.sort(chosen.choice(6, (row == one).sum(), replace=False))
        own = index.add(SparseFeatures(row, feature, activation), flags, first)
        assert own.tolist() == (row + first).tolist()
        expected += zip(feature.tolist(), activation.tolist(), own.tolist(), flags[row].tolist(), strict=True)
        first += rows
        flags[:] = 0  # the caller may use it again
    found = index.sort()
    columns = (found.feature, found.activation, found.row, found.flags)
    assert list(zip(*(one.tolist() for one in columns), strict=True)) == sorted(
        expected, key=lambda one: (one[0], -one[1], one[2])
    )


def test_refuses_to_commit_half_a_shard(local_bucket: Bucket) -> None:
    run = make_run(3)
    with ShardWriter(local_bucket, run.record, 0, "attempt") as writer:
        writer.add(*run.part(run.tokens.sequence < 2))
        with pytest.raises(ValueError, match="2 of its 3 sequences"):
            writer.commit()
    assert local_bucket.keys("runs") == []


def test_commits_survive_json_exactly(local_bucket: Bucket) -> None:
    run = make_run(8)
    run.norms["resid_pre.0"][0] = 0  # whose logarithm JSON cannot say
    write_run(local_bucket, run)
    for commit in open_run(local_bucket, "run").commits:
        data = commit.to_json()
        json.loads(data, parse_constant=pytest.fail)
        assert Commit.from_json(data, "key") == commit


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"objects": {}}', b"\xff"])
def test_damaged_commits_are_named(local_bucket: Bucket, data: bytes) -> None:
    write_run(local_bucket, make_run(8))
    local_bucket.put("runs/run/commits/00000001.json", data)
    with pytest.raises(CorruptObject) as caught:
        open_run(local_bucket, "run")
    assert caught.value.details["value"] == "runs/run/commits/00000001.json"


def test_a_commit_of_another_shard_is_refused(local_bucket: Bucket) -> None:
    write_run(local_bucket, make_run(8))
    local_bucket.put("runs/run/commits/00000001.json", local_bucket.get("runs/run/commits/00000002.json"))
    with pytest.raises(CorruptObject):
        open_run(local_bucket, "run")


@given(
    st.lists(
        st.lists(st.floats(0, 1e6, width=32), max_size=20).map(lambda values: np.array(values, np.float32)), max_size=6
    )
)
def test_merged_moments_equal_moments_of_everything(parts: list[np.ndarray]) -> None:
    merged = Moments()
    for part in parts:
        merged = merged.merge(Moments.of(part))
    values = np.concatenate([np.empty(0), *parts])
    assert merged.count == len(values)
    if not len(values):
        return
    assert (merged.minimum, merged.maximum) == (values.min(), values.max())
    assert merged.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-30)
    assert merged.standard_deviation == pytest.approx(values.std(), rel=1e-7, abs=1e-9 * values.max())
    with np.errstate(divide="ignore"):
        assert merged.geometric_mean == pytest.approx(np.exp(np.log(values).mean()), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 7, 20_000, 70_000])
def test_moments_of_rows_are_those_of_each_row(width: int, kind: type[np.floating]) -> None:
    """More than one chunk of rows, some with numbers that have no logarithm, and some of the smallest and the largest,
    whose products are outside of their type's range.
    """
    rows = np.random.default_rng(width).lognormal(size=(40, width)).astype(kind)
    rows[3, 0], rows[-1] = 0, -rows[-1]
    limits = np.finfo(kind)
    rows[5], rows[6] = limits.smallest_subnormal, min(float(limits.max), 1e150)
    for row, found in zip(rows.astype(np.float64), Moments.of_rows(rows), strict=True):
        expected = [width, row.mean(), ((row - row.mean()) ** 2).sum(), row.min(), row.max()]
        assert [getattr(found, name) for name in ("count", "mean", "m2", "minimum", "maximum")] == pytest.approx(
            expected
        )
        assert found.log_sum == (pytest.approx(np.log(row).sum()) if row.min() > 0 else -np.inf)


def test_a_name_cannot_leave_its_folder(tmp_path: Path, local_bucket: Bucket) -> None:
    run = make_run(8)
    for attempt in ("../../x", "a/b", "", "."):
        with pytest.raises(ActstoreError) as caught, ShardWriter(local_bucket, run.record, 0, attempt):
            pass
        assert caught.value.reason == "NAME_INVALID"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
