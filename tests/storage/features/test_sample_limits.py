"""What a sample of examples refuses, takes for granted, and shows where a run knows little."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest, CorruptObject
from actstore_storage.features import examples, sampling
from actstore_storage.features.examples import Window, examples_table
from actstore_storage.features.ranking import Ranking
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.sampling import METHODS, Sample, sample_examples, sample_many
from actstore_storage.features.segments import read_segment
from actstore_storage.features.statistics import feature_rows, feature_statistics, top_examples
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import segment_key
from actstore_storage.parquet.reading import open_product
from actstore_storage.runs import tokens
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.runs.tokens import shard_tokens
from tests import stored_run
from tests.run_state import merge_index
from tests.storage.feature_twins import slow_entries
from tests.storage.random_run import SAE, TEXTS, make_run, slow_top_examples, write_run

# Of more sequences than there are examples where nobody says how many.
RUN = make_run(6, sequences=30, longest=20, d_sae=6, sequences_per_shard=10)
BOS_LEFT_OUT = frozenset({"bos"})


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    write_run(bucket, RUN)
    return open_run(bucket, "run")


def test_what_is_asked_for_where_nothing_is_said(snapshot: Snapshot) -> None:
    expected = slow_top_examples(RUN, 5, 20, 12, 6, BOS_LEFT_OUT)
    assert len(expected) == 20
    assert top_examples(snapshot, SAE, 5).to_pylist() == expected
    assert sample_examples(snapshot, SAE, 5, Sample("top")).to_pylist() == expected
    many = sample_many(snapshot, SAE, (5, 4), Sample("top"))
    assert many.column_names[0] == "feature"
    assert many.drop_columns("feature").to_pylist() == expected + slow_top_examples(RUN, 4, 20, 12, 6, BOS_LEFT_OUT)
    assert many["feature"].to_pylist() == [5] * 20 + [4] * (len(many) - 20)
    assert feature_statistics(snapshot, SAE, 5).histogram.num_rows == 40
    assert Sample("quantile") == Sample("quantile", k=20, bins=10, threshold=0.0, seed=0)
    every = pa.Table.from_batches(feature_rows(snapshot, SAE, 5))
    assert every.num_rows == len(slow_entries(RUN, 5, BOS_LEFT_OUT))


@pytest.mark.parametrize(
    ("wrong", "field", "value", "allowed"),
    [
        ({"method": "best"}, "method", "best", "top, range, rank, quantile, activating, positions"),
        ({"k": 1001}, "k", "1001", "1 to 1000"),
        ({"bins": 1001}, "bins", "1001", "1 to 1000"),
        ({"seed": 2**32}, "seed", "4294967296", "0 to 4294967295"),
        ({"method": "quantile", "k": 91, "bins": 11}, "k * bins", "1001", "1 to 1000"),
        ({"threshold": -0.5}, "threshold", "-0.5", "0 or more"),
        ({"threshold": float("inf")}, "threshold", "inf", "0 or more"),
    ],
)
def test_samples_that_are_refused(wrong: dict, field: str, value: str, allowed: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Sample(**{"method": "range"} | wrong)
    assert caught.value.details == {"field": field, "value": value, "allowed": allowed}


def test_samples_at_the_limits() -> None:
    for method in METHODS:
        Sample(method, k=1000, bins=1, seed=2**32 - 1)
        Sample(method, k=1, bins=1000, threshold=0.5)
    Sample("range", k=1000, bins=1000)  # bins are of quantile alone


@pytest.mark.parametrize(
    ("features", "sample", "field", "value", "allowed"),
    [
        (257, Sample("top", k=1), "features", "257", "1 to 256"),
        (101, Sample("top", k=100), "features * examples", "10100", "1 to 10000"),
        (11, Sample("quantile", k=100, bins=10), "features * examples", "11000", "1 to 10000"),
    ],
)
def test_more_at_once_than_one_answer_holds(
    features: int, sample: Sample, field: str, value: str, allowed: str, snapshot: Snapshot
) -> None:
    with pytest.raises(BadRequest) as caught:
        sample_many(snapshot, SAE, [0] * features, sample)
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert caught.value.details == {"field": field, "value": value, "allowed": allowed}


@pytest.mark.parametrize("bins", [0, 10_001])
def test_bins_of_statistics_that_are_refused(bins: int, snapshot: Snapshot) -> None:
    with pytest.raises(BadRequest) as caught:
        feature_statistics(snapshot, SAE, 1, bins=bins)
    assert caught.value.details == {"field": "bins", "value": str(bins), "allowed": "1 to 10000"}


def test_as_many_at_once_as_one_answer_holds(snapshot: Snapshot) -> None:
    """Feature 0 never fires."""
    for features, sample in ((256, Sample("top", k=39)), (100, Sample("top", k=100)), (10, Sample("quantile", k=100))):
        assert sample_many(snapshot, SAE, [0] * features, sample).num_rows == 0


@pytest.mark.parametrize("method", ["top", "positions"])
def test_features_and_sequences_that_there_are_not(method: str, snapshot: Snapshot) -> None:
    for feature, keep, reason, field in (
        (6, None, "FEATURE_OUT_OF_RANGE", "feature"),
        (1, TokenFilter(first_sequence=30), "ARGUMENT_INVALID", "sequences"),
    ):
        with pytest.raises(BadRequest) as caught:
            sample_examples(snapshot, SAE, feature, Sample(method), keep=keep)
        assert (caught.value.reason, caught.value.details["field"]) == (reason, field)
    with pytest.raises(BadRequest) as caught:
        feature_statistics(snapshot, SAE, 6)
    assert caught.value.reason == "FEATURE_OUT_OF_RANGE"


def test_a_feature_that_there_is_not_has_no_positions_though_nothing_of_it_is_shown(local_bucket: Bucket) -> None:
    stored_run.write_stored_run(local_bucket, sources=None)
    snapshot, window = open_run(local_bucket, "planted"), Window(0, 0)
    assert sample_examples(snapshot, stored_run.SAE, 11, Sample("positions"), window=window).num_rows == 20
    with pytest.raises(BadRequest) as caught:
        sample_examples(snapshot, stored_run.SAE, 12, Sample("positions"), window=window)
    assert caught.value.reason == "FEATURE_OUT_OF_RANGE"


@pytest.mark.parametrize("threshold", [-0.5, float("inf"), float("nan")])
def test_thresholds_that_are_refused(threshold: float, snapshot: Snapshot) -> None:
    with pytest.raises(BadRequest) as caught:
        feature_rows(snapshot, SAE, 1, threshold=threshold)
    assert caught.value.details == {"field": "threshold", "value": str(threshold), "allowed": "0 or more"}


def test_nothing_above_a_threshold_is_one_batch_without_rows(snapshot: Snapshot) -> None:
    [batch] = feature_rows(snapshot, SAE, 1, threshold=1e9)
    assert (batch.num_rows, batch.schema.names[0]) == (0, "activation")


def test_windows_around_tokens_on_which_a_feature_does_not_fire(snapshot: Snapshot) -> None:
    """Around all tokens that count: feature 0 never fires; feature 1 here and there, and last before the last token."""
    assert RUN.features[-1, 1] == 0
    for feature in (0, 1):
        found = sample_examples(snapshot, SAE, feature, Sample("positions", k=1000), window=Window(3, 2)).to_pylist()
        assert len(found) == RUN.kept(BOS_LEFT_OUT).sum()
        for example in found:
            near = (RUN.tokens.sequence == example["sequence"]) & (
                np.abs(RUN.tokens.position - example["position"] + 0.5) < 3
            )
            assert example["first_position"] == RUN.tokens.position[near][0]
            assert (
                example["activation"] == RUN.features[near, feature][RUN.tokens.position[near] == example["position"]]
            )
            assert example["activations"] == RUN.features[near, feature].tolist()
            assert example["texts"] == [TEXTS[token] for token in RUN.tokens.token[near]]


def test_no_shard_is_read_in_which_no_position_was_drawn(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one position two are drawn, since one of them may not count; and each shard is read once."""
    read: list[int] = []

    def counted(bucket: Bucket, commit: Commit) -> pa.Table:
        read.append(commit.shard)
        return shard_tokens(bucket, commit)

    monkeypatch.setattr(sampling, "shard_tokens", counted)
    seen = set()
    for seed in range(20):
        read.clear()
        sample_examples(snapshot, SAE, 1, Sample("positions", k=1, seed=seed), exclude=frozenset())
        assert len(read) == len(set(read)) <= 2
        seen |= set(read)
    assert seen == {0, 1, 2}


def test_before_anything_is_captured_there_are_no_positions(local_bucket: Bucket) -> None:
    write_run(local_bucket, RUN, shards=())
    snapshot = open_run(local_bucket, "run")
    for method in METHODS:
        assert sample_examples(snapshot, SAE, 1, Sample(method)).num_rows == 0


@pytest.mark.parametrize("window", [Window(0, 0), Window(0, 1), Window(1, 0)])
def test_examples_of_a_run_that_does_not_know_its_documents(window: Window, local_bucket: Bucket) -> None:
    run = stored_run.write_stored_run(local_bucket, sources=None)
    snapshot = open_run(local_bucket, "planted")
    found = top_examples(
        snapshot,
        stored_run.SAE,
        stored_run.FIRING,
        tokens_before=window.tokens_before,
        tokens_after=window.tokens_after,
    ).to_pylist()
    assert len(found) > 3
    tokens, values = run.tokens, run.features[stored_run.SAE][:, stored_run.FIRING]
    for example in found:
        [row] = np.flatnonzero((tokens.sequence == example["sequence"]) & (tokens.position == example["position"]))
        near = range(row - window.tokens_before, row + window.tokens_after + 1)
        shown = [other for other in near if other < len(values) and tokens.sequence[other] == tokens.sequence[row]]
        assert (example["source"], example["row"]) == (None, None)
        assert (example["activation"], example["document"]) == (values[row], tokens.document[row])
        assert example["first_position"] == tokens.position[shown[0]]
        assert example["tokens"] == tokens.token[shown].tolist()
        assert example["activations"] == values[shown].tolist()


def test_without_a_window_no_more_is_read_than_the_examples_say(
    snapshot: Snapshot, local_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies around them is read for windows alone, and their tokens for the sources of their documents alone."""
    ranked: list[int] = []
    ranking = FeatureReader.ranking

    def counted(reader: FeatureReader, feature: int, *options: Any) -> Ranking:
        ranked.append(feature)
        return ranking(reader, feature, *options)

    monkeypatch.setattr(FeatureReader, "ranking", counted)
    alone = top_examples(snapshot, SAE, 5, k=3, tokens_before=0, tokens_after=0).to_pylist()
    assert ranked == [5]
    assert alone == slow_top_examples(RUN, 5, 3, 0, 0, BOS_LEFT_OUT)
    stored_run.write_stored_run(local_bucket, sources=None)
    without_sources = open_run(local_bucket, "planted")
    monkeypatch.setattr(examples, "open_product", None)
    assert top_examples(without_sources, stored_run.SAE, stored_run.FIRING, tokens_before=0, tokens_after=0).num_rows


def test_around_activations_that_are_few_all_of_them_are_shown_and_no_shards_own_rows(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[str] = set()

    def counted(bucket: Bucket, commit: Commit, product: str, **how: Any) -> Any:
        opened.add(product)
        return open_product(bucket, commit, product, **how)

    for module in (examples, tokens):
        monkeypatch.setattr(module, "open_product", counted)
    reader = FeatureReader(snapshot, SAE)
    every = reader.ranking(5, frozenset()).all()
    for count in (1, 7):
        tables = []
        for few_entries, products in ((len(every), {"tokens"}), (len(every) - 1, {"tokens", f"features-{SAE}"})):
            opened.clear()
            tables.append(examples_table(reader, 5, every.take(slice(count)), Window(2, 2), few_entries))
            assert opened == products
        assert tables[0].num_rows == count
        assert tables[0].equals(tables[1])


def test_windows_at_the_limits_and_beyond() -> None:
    Window(0, 1024)
    Window(1024, 0)
    for field in ("tokens_before", "tokens_after"):
        for wrong in (-1, 1025):
            with pytest.raises(BadRequest) as caught:
                Window(**{field: wrong})
            assert caught.value.details == {"field": field, "value": str(wrong), "allowed": "0 to 1024"}


def test_a_manifest_of_another_run_is_no_index_of_this_one(local_bucket: Bucket) -> None:
    write_run(local_bucket, RUN)
    assert merge_index(local_bucket, "run", SAE, "merge") == 1
    snapshot = open_run(local_bucket, "run")
    segment = read_segment(snapshot, SAE, range(3))
    key = segment_key("run", SAE, range(3))
    for other in (
        replace(segment, run="another"),
        replace(segment, sae="another"),
        replace(segment, specification_sha256="0" * 64),
        replace(segment, end_shard=2),
    ):
        local_bucket.delete(key)
        local_bucket.put(key, other.to_json())
        with pytest.raises(CorruptObject) as caught:
            feature_statistics(snapshot, SAE, 1)
        assert caught.value.details["value"] == key
    local_bucket.put(key, segment.to_json())
    assert read_segment(snapshot, SAE, range(3)) == segment
