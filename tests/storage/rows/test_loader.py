"""The training loader against the rows that were written: each once an epoch, aligned, in an order that resumes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from actstore_storage.format import products
from actstore_storage.format.specification import Positions
from actstore_storage.rows.loader import HeldOut, TrainingLoader
from actstore_storage.runs.opening import open_run
from tests.storage.random_run import RandomRun, make_run, write_run

SITES = ("resid_pre.0", "resid_post.3")
ROW_GROUP = 5


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of a few rows instead of 16 MiB."""
    monkeypatch.setattr(products, "DENSE_GROUP_BYTES", ROW_GROUP * 8 * 4)


def written(bucket: Bucket, seed: int = 3, dtype: str = "float32") -> RandomRun:
    run = make_run(seed, sequences=30, sequences_per_shard=7, dtype=dtype)
    write_run(bucket, run)
    return run


def keyed(run: RandomRun, exclude: frozenset[str] = frozenset()) -> dict[tuple[int, int], tuple[bytes, ...]]:
    """By (sequence, position), the bits of both sites."""
    kept = run.kept(exclude)
    return {
        (int(run.tokens.sequence[row]), int(run.tokens.position[row])): tuple(
            run.dense[s][row].tobytes() for s in SITES
        )
        for row in np.flatnonzero(kept)
    }


def served(loader: TrainingLoader) -> list[dict[tuple[int, int], tuple[bytes, ...]]]:
    found = []
    for batch in loader:
        places = zip(batch.tokens["sequence"].tolist(), batch.tokens["position"].tolist(), strict=True)
        rows = zip(*(batch.sites[site] for site in SITES), strict=True)
        found.append({place: tuple(row.tobytes() for row in pair) for place, pair in zip(places, rows, strict=True)})
    return found


def load(bucket: Bucket, **options: object) -> TrainingLoader:
    options = {
        "batch_rows": 16,
        "pool_groups": 4,
        "columns": ("sequence", "position"),
        "exclude": frozenset(),
    } | options
    return TrainingLoader(open_run(bucket, "run"), SITES, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("exclude", [frozenset(), frozenset({"bos", "special"})], ids=["all", "text"])
def test_every_row_once_an_epoch(exclude: frozenset[str], dtype: str, local_bucket: Bucket, small_groups: None) -> None:
    run = written(local_bucket, dtype=dtype)
    loader = load(local_bucket, exclude=exclude)
    assert loader.row_groups > 12
    epochs = [served(loader) for _ in range(2)]
    for batches in epochs:
        assert {len(batch) for batch in batches[:-1]} == {16}
        together: dict[tuple[int, int], tuple[bytes, ...]] = {}
        for batch in batches:
            assert not together.keys() & batch.keys()
            together |= batch
        assert together == keyed(run, exclude)
    assert list(epochs[0][0]) != list(epochs[1][0])
    assert served(load(local_bucket, exclude=exclude, seed=1))[0] != epochs[0][0]


@pytest.mark.parametrize("exclude", [frozenset(), frozenset({"bos"})], ids=["all", "text"])
def test_held_out_sequences_are_the_others(exclude: frozenset[str], local_bucket: Bucket, small_groups: None) -> None:
    run = written(local_bucket)
    trained, alone = (
        {key for batch in served(load(local_bucket, exclude=exclude, held_out=HeldOut(4, alone))) for key in batch}
        for alone in (False, True)
    )
    assert {sequence for sequence, _ in alone} == {sequence for sequence, _ in keyed(run, exclude) if sequence % 4 == 0}
    assert trained | alone == keyed(run, exclude).keys()
    assert not trained & alone
    with pytest.raises(BadRequest, match="every is 1"):
        HeldOut(1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_rows=st.integers(1, 60), pool_groups=st.integers(1, 9), stop=st.integers(0, 40), seed=st.integers(0, 5))
def test_it_goes_on_where_it_stopped(
    batch_rows: int, pool_groups: int, stop: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bucket = stored(tmp_path_factory)
    options = {"batch_rows": batch_rows, "pool_groups": pool_groups, "seed": seed}
    whole = load(bucket, **options)
    expected = [served(whole), served(whole)]
    first, seen = load(bucket, **options), 0
    batches = iter(first)
    for seen, _ in enumerate(batches, start=1):
        if seen == stop:
            break
    second = load(bucket, **options)
    second.resume(first.state())
    if seen == stop:
        assert served(second) == expected[0][stop:]
    assert served(second) == expected[1]


_STORED: list[Bucket] = []


def stored(factory: pytest.TempPathFactory) -> Bucket:
    """One for all examples, with small row groups."""
    if not _STORED:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "DENSE_GROUP_BYTES", ROW_GROUP * 8 * 4)
            bucket = open_bucket(str(factory.mktemp("loader")))
            written(bucket)
            _STORED.append(bucket)
    return _STORED[0]


def test_batches_are_mixed(local_bucket: Bucket, small_groups: None) -> None:
    """A batch's rows are of as many sequences as rows drawn from the whole pool would be."""
    written(local_bucket)
    of_batches = [
        len({sequence for sequence, _ in batch}) for batch in served(load(local_bucket, pool_groups=100))[:-1]
    ]
    lengths = np.bincount([sequence for batch in served(load(local_bucket)) for sequence, _ in batch])
    share = lengths / lengths.sum()
    expected = (1 - (1 - share) ** 16).sum()  # of 16 drawn one by one
    assert np.mean(of_batches) == pytest.approx(expected, rel=0.15)


def test_rows_of_chosen_positions(local_bucket: Bucket, small_groups: None) -> None:
    run = make_run(5, sequences=20, sequences_per_shard=6)
    specification = replace(run.record.specification, positions=Positions("stride", stride=3))
    record = replace(run.record, specification=specification, specification_sha256=specification.sha256)
    chosen = run.tokens.position % 3 == 0
    write_run(local_bucket, replace(run, record=record), chosen=chosen)
    found = {place: rows for batch in served(load(local_bucket)) for place, rows in batch.items()}
    assert found == {place: rows for place, rows in keyed(run).items() if place[1] % 3 == 0}


def test_batches_stay_what_they_were(local_bucket: Bucket, small_groups: None) -> None:
    """The memory that rows are read into is used again, also by the next epoch."""
    run = written(local_bucket)
    loader = load(local_bucket, pool_groups=2)
    batches = list(loader)
    bits = [batch.sites[site].tobytes() for batch in batches for site in SITES]
    for _ in loader:
        pass
    assert [batch.sites[site].tobytes() for batch in batches for site in SITES] == bits
    assert sum(len(batch.sites[SITES[0]]) for batch in batches) == len(keyed(run))
    assert batches[0].dtypes == dict.fromkeys(SITES, "float32")


def test_two_epochs_at_once(local_bucket: Bucket, small_groups: None) -> None:
    run = written(local_bucket)
    loader = load(local_bucket, pool_groups=2)
    first = iter(loader)
    next(first)
    second = load(local_bucket, pool_groups=2)
    second.resume(loader.state())
    assert {place for batch in served(second) for place in batch} <= keyed(run).keys()
    rest = sum(len(batch.sites[SITES[0]]) for batch in first)
    assert rest == len(keyed(run)) - 16


@pytest.mark.parametrize(
    ("options", "field"),
    [({"batch_rows": 0}, "batch_rows"), ({"pool_groups": 0}, "pool_groups"), ({"columns": ("text",)}, "columns"),
     ({"exclude": frozenset({"pad"})}, "exclude")],
)  # fmt: skip
def test_bad_requests(options: dict[str, object], field: str, local_bucket: Bucket) -> None:
    written(local_bucket)
    with pytest.raises(BadRequest) as caught:
        load(local_bucket, **options)
    assert caught.value.details["field"] == field
    with pytest.raises(BadRequest, match="does not store"):
        TrainingLoader(open_run(local_bucket, "run"), ("resid_post.1",))
