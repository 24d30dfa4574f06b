"""Features by their statistics and by the tokens that they fire on, where there is one token, one word, or none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from actstore_storage.features.coactivity import active_features, cofiring_features
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.table import FeatureSearch, feature_table, token_r2, token_r2_of_all
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from tests.storage.feature_twins import slow_r2
from tests.storage.random_run import SAE, RandomRun, make_run, write_run

NOBODY = frozenset[str]()
# More features than an answer has where nobody says how many.
MANY = make_run(4, sequences=8, longest=9, d_sae=130)


def stored(bucket: Bucket, run: RandomRun) -> Snapshot:
    write_run(bucket, run)
    return open_run(bucket, "run")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return stored(open_bucket(str(tmp_path_factory.mktemp("store"))), MANY)


def of_words(words: list[int], features: np.ndarray) -> RandomRun:
    """A run of one sequence, of these tokens."""
    run = make_run(1, sequences=1, longest=1, d_sae=features.shape[1])
    rows = len(words)
    tokens = replace(
        run.tokens,
        sequence=np.zeros(rows, np.int64),
        position=np.arange(rows, dtype=np.int32),
        document=np.zeros(rows, np.int64),
        token=np.array(words, np.int32),
        flags=np.zeros(rows, np.uint8),
    )
    dense = {site: np.zeros((rows, 8), np.float32) for site in run.dense}
    norms = {site: np.ones(rows, np.float32) for site in run.norms}
    specification = replace(run.record.specification, context_length=rows)
    record = replace(
        run.record,
        specification=specification,
        specification_sha256=specification.sha256,
        tokens_total=rows,
    )
    return RandomRun(record, tokens, dense, norms, features.astype(np.float32))


def test_what_is_asked_for_where_nothing_is_said(many: Snapshot) -> None:
    table = feature_table(many, SAE)
    assert table == feature_table(many, SAE, FeatureSearch(order="density", k=100), exclude=frozenset({"bos"}))
    assert table.column_names == ["feature", "active_tokens", "density", "maximum", "mean_when_active"]
    assert table.num_rows == 100
    assert table["density"].to_pylist() == sorted(table["density"].to_pylist(), reverse=True)
    keep = TokenFilter()
    active = active_features(many, SAE, keep)
    assert active == active_features(many, SAE, keep, k=20, order="mean", exclude=frozenset({"bos"}))
    assert active.num_rows == 20
    together = cofiring_features(many, SAE, 129)
    assert together == cofiring_features(many, SAE, 129, k=20, least_tokens=5, exclude=frozenset({"bos"}))
    assert together.num_rows == 20


def test_bounds_include_their_ends_and_leave_out_what_is_no_number(many: Snapshot) -> None:
    everything = feature_table(many, SAE, FeatureSearch(with_token_r2=True, k=130)).to_pylist()
    middle = everything[60]["active_tokens"]
    found = feature_table(many, SAE, FeatureSearch({"active_tokens": (middle, middle)}))
    expected = [row["feature"] for row in everything if row["active_tokens"] == middle]
    assert found["feature"].to_pylist() == expected
    assert expected
    for low, high in ((middle, None), (None, middle)):
        found = feature_table(many, SAE, FeatureSearch({"active_tokens": (low, high)}, k=130))
        assert found["feature"].to_pylist() == [
            row["feature"] for row in everything if (low or 0) <= row["active_tokens"] <= (high or np.inf)
        ]
    # Feature 0 never fires, so that nothing can be said of its tokens.
    numbers = feature_table(many, SAE, FeatureSearch({"token_r2": (None, None)}, features=(0, 50, 100)))
    assert set(numbers["feature"].to_pylist()) == {50, 100}


@pytest.mark.parametrize("order", ["density", "active_tokens", "maximum", "mean_when_active", "token_r2"])
@pytest.mark.parametrize("ascending", [False, True])
def test_features_come_from_the_least_or_from_the_largest(order: str, ascending: bool, many: Snapshot) -> None:
    """Those of which there is no number come last, either way."""
    rows = feature_table(many, SAE, FeatureSearch(order=order, ascending=ascending, k=130)).to_pylist()
    assert len(rows) == 130
    sign = 1 if ascending else -1
    assert rows == sorted(
        rows, key=lambda row: (np.isnan(row[order]), sign * np.nan_to_num(row[order]), row["feature"])
    )


def test_bounds_that_are_upside_down_say_how_they_must_be() -> None:
    with pytest.raises(BadRequest) as caught:
        FeatureSearch({"density": (0.5, 0.25)})
    assert caught.value.details == {"field": "density", "value": "0.5..0.25", "allowed": "low <= high"}


@pytest.mark.parametrize("words", [[7], [0, 0, 0], [3, 3, 3, 3], [1, 2, 3, 4], [5, 5, 9, 2, 2, 2]], ids=str)
def test_the_words_share_in_a_text_of_few_tokens(words: list[int], local_bucket: Bucket) -> None:
    """Of one word, of words that never come again, and of some that do; feature 0 never fires, and 1 always alike."""
    count = len(words)
    features = np.stack([np.zeros(count), np.ones(count), np.arange(count) % 3, np.arange(count) == 1], axis=1)
    run = of_words(words, features)
    snapshot = stored(local_bucket, run)
    every = token_r2_of_all(FeatureReader(snapshot, SAE), NOBODY)
    for feature in range(4):
        expected = slow_r2(run, feature, NOBODY)
        one = token_r2(snapshot, SAE, feature, exclude=NOBODY)
        assert (one.raw, one.corrected) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert (every.raw[feature], every.corrected[feature]) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    for row in feature_table(snapshot, SAE, exclude=NOBODY).to_pylist():
        values = features[:, row["feature"]]
        assert (row["active_tokens"], row["density"]) == ((values > 0).sum(), (values > 0).mean())
        assert row["mean_when_active"] == (values[values > 0].mean() if values.any() else 0)


def test_a_feature_that_never_varies_is_not_explained_by_rounding(local_bucket: Bucket) -> None:
    words = np.random.default_rng(0).integers(0, 20, 999).tolist()
    features = np.tile([1.1, 2.7, 0.7, 0.1], (999, 1))
    snapshot = stored(local_bucket, of_words(words, features))
    assert np.isnan(token_r2_of_all(FeatureReader(snapshot, SAE), NOBODY).raw).all()


def test_words_of_which_none_comes_again_tell_nothing_by_rounding(local_bucket: Bucket) -> None:
    rng = np.random.default_rng(0)
    snapshot = stored(local_bucket, of_words(rng.permutation(40).tolist(), rng.lognormal(size=(40, 8))))
    found = token_r2_of_all(FeatureReader(snapshot, SAE), NOBODY)
    assert found.raw == pytest.approx(1)
    assert np.isnan(found.corrected).all()


def test_before_anything_is_captured_no_feature_fires(local_bucket: Bucket) -> None:
    write_run(local_bucket, MANY, shards=())
    snapshot = open_run(local_bucket, "run")
    table = feature_table(snapshot, SAE, FeatureSearch(k=130, with_token_r2=True))
    for name in ("active_tokens", "density", "maximum", "mean_when_active"):
        assert table[name].to_pylist() == [0] * 130
    assert active_features(snapshot, SAE, TokenFilter()).num_rows == 0
    assert cofiring_features(snapshot, SAE, 129, least_tokens=1).num_rows == 0


def test_the_features_of_one_token_are_what_it_has(many: Snapshot) -> None:
    keep = TokenFilter(first_sequence=3, end_sequence=4, first_position=1, end_position=2)
    [row] = np.flatnonzero(keep.mask_of(MANY.tokens))
    found = active_features(many, SAE, keep, k=130, exclude=NOBODY).to_pylist()
    values = MANY.features[row]
    assert {each["feature"]: each["mean"] for each in found} == {
        feature: value for feature, value in enumerate(values.tolist()) if value
    }
    for each in found:
        assert (each["active_tokens"], each["maximum"]) == (1, each["mean"])
        assert each["density"] == (MANY.features[:, each["feature"]] > 0).mean()
        assert each["lift"] == pytest.approx(1 / each["density"])


def test_features_that_share_as_many_tokens_as_are_asked_for(local_bucket: Bucket) -> None:
    """Feature 0 fires once, with 1; feature 2 on three tokens, with 3 on two of them."""
    features = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]])
    snapshot = stored(local_bucket, of_words([1, 2, 3, 4], features))
    for feature, least, expected in (
        (0, 1, [{"feature": 1, "both_tokens": 1, "share": 1.0, "density": 0.25, "lift": 4.0}]),
        (2, 1, [{"feature": 3, "both_tokens": 2, "share": 2 / 3, "density": 0.5, "lift": 4 / 3}]),
        (2, 2, [{"feature": 3, "both_tokens": 2, "share": 2 / 3, "density": 0.5, "lift": 4 / 3}]),
        (2, 3, []),
    ):
        found = cofiring_features(snapshot, SAE, feature, least_tokens=least, exclude=NOBODY).to_pylist()
        assert found == [pytest.approx(row) for row in expected]


def test_the_features_of_one_token_wherever_it_lies_among_row_groups(tmp_path: Path) -> None:
    """The last token that a row group has is read, and so is the first of the next."""
    run = make_run(2, sequences=40, longest=300, d_sae=30, sequences_per_shard=40)
    snapshot = stored(open_bucket(str(tmp_path)), run)
    with snapshot.bucket.open(snapshot.commits[0].objects[f"features-{SAE}"].key) as source:
        footer = pq.ParquetFile(source).metadata
    column = footer.schema.names.index("row")
    bounds = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
    assert len(bounds) > 2
    for row in {place for bound in bounds for place in (bound.min, bound.max)}:
        sequence, position = int(run.tokens.sequence[row]), int(run.tokens.position[row])
        keep = TokenFilter(
            first_sequence=sequence, end_sequence=sequence + 1, first_position=position, end_position=position + 1
        )
        found = active_features(snapshot, SAE, keep, k=30, exclude=NOBODY)
        assert set(found["feature"].to_pylist()) == set(np.flatnonzero(run.features[row]).tolist())
    for feature in (2, 29):
        fires = run.features > 0
        both = (fires & fires[:, [feature]]).sum(axis=0)
        found = cofiring_features(snapshot, SAE, feature, k=30, least_tokens=1, exclude=NOBODY).to_pylist()
        assert {row["feature"]: row["both_tokens"] for row in found} == {
            other: count for other, count in enumerate(both) if count and other != feature
        }


@pytest.mark.parametrize(
    ("ask", "field", "allowed"),
    [
        (lambda s: active_features(s, SAE, TokenFilter(), k=0), "k", "1 to 10000"),
        (lambda s: active_features(s, SAE, TokenFilter(), k=10_001), "k", "1 to 10000"),
        (lambda s: cofiring_features(s, SAE, 1, k=0), "k", "1 to 10000"),
        (lambda s: cofiring_features(s, SAE, 1, k=10_001), "k", "1 to 10000"),
        (lambda s: cofiring_features(s, SAE, 1, least_tokens=0), "least_tokens", "1 to 4294967295"),
        (lambda s: cofiring_features(s, SAE, 1, least_tokens=2**32), "least_tokens", "1 to 4294967295"),
        (lambda s: FeatureSearch(k=1_000_001), "k", "1 to 1000000"),
    ],
)
def test_numbers_that_are_too_small_or_too_large(ask, field: str, allowed: str, many: Snapshot) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(many)
    assert (caught.value.details["field"], caught.value.details["allowed"]) == (field, allowed)
