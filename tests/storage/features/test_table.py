"""Statistics of all features, token_r2 and co-firing, against a slow look at token-major rows and closed forms."""

from pathlib import Path

import numpy as np
import pytest

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.features.coactivity import active_features, cofiring_features
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.table import FeatureSearch, feature_table, token_r2, token_r2_of_all
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.shard_writer import TokenRows
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from tests.run_state import merge_index
from tests.storage.feature_twins import EXCLUSIONS, slow_r2
from tests.storage.random_run import SAE, VOCABULARY, RandomRun, make_run, write_run

RUN = make_run(9, sequences=60, longest=30, sequences_per_shard=7, d_sae=9)


def stored(run: RandomRun, folder: Path, *, merged: bool) -> Snapshot:
    bucket = open_bucket(str(folder))
    write_run(bucket, run)
    if merged:
        assert merge_index(bucket, "run", SAE, "merge", part_rows=900)
    return open_run(bucket, "run")


@pytest.fixture(scope="module", params=[False, True], ids=["shards", "merged"])
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return stored(RUN, tmp_path_factory.mktemp("store"), merged=request.param)


@pytest.mark.parametrize("exclude", EXCLUSIONS)
def test_every_feature(snapshot: Snapshot, exclude: frozenset[str]) -> None:
    kept = RUN.kept(exclude)
    table = feature_table(snapshot, SAE, FeatureSearch(with_token_r2=True, k=100), exclude=exclude).to_pylist()
    assert len(table) == 9
    assert [row["density"] for row in table] == sorted((row["density"] for row in table), reverse=True)
    for row in table:
        values = RUN.features[kept, row["feature"]].astype(np.float64)
        active = values[values > 0]
        assert row["active_tokens"] == len(active)
        assert row["density"] == len(active) / len(values)
        assert row["maximum"] == values.max()
        assert row["mean_when_active"] == pytest.approx(active.mean() if len(active) else 0, rel=1e-12)
        raw, corrected = slow_r2(RUN, row["feature"], exclude)
        assert row["token_r2"] == pytest.approx(corrected, abs=1e-12, nan_ok=True)
        named = FeatureSearch(with_token_r2=True, features=(row["feature"],))
        [alone] = feature_table(snapshot, SAE, named, exclude=exclude).to_pylist()
        assert alone == pytest.approx(row, nan_ok=True, abs=1e-12)
        one = token_r2(snapshot, SAE, row["feature"], exclude=exclude)
        assert (one.raw, one.corrected) == pytest.approx((raw, corrected), abs=1e-12, nan_ok=True)
    in_parts = token_r2_of_all(FeatureReader(snapshot, SAE), exclude, part_rows=50)
    whole = token_r2_of_all(FeatureReader(snapshot, SAE), exclude)
    assert np.array_equal(in_parts.raw, whole.raw, equal_nan=True)


def test_search_by_statistic(snapshot: Snapshot) -> None:
    everything = feature_table(snapshot, SAE, FeatureSearch(with_token_r2=True, order="maximum")).to_pylist()
    low, high = 0.2, 0.7
    found = feature_table(snapshot, SAE, FeatureSearch({"density": (low, high)}, order="maximum", ascending=True))
    expected = {row["feature"] for row in everything if low <= row["density"] <= high}
    assert set(found["feature"].to_pylist()) == expected
    assert found["maximum"].to_pylist() == sorted(found["maximum"].to_pylist())
    found = feature_table(snapshot, SAE, FeatureSearch({"token_r2": (None, 0.01)}, k=2))
    below = [row for row in everything if row["token_r2"] <= 0.01]
    assert (
        found["feature"].to_pylist()
        == [row["feature"] for row in sorted(below, key=lambda row: (-row["density"], row["feature"]))][:2]
    )
    assert feature_table(snapshot, SAE, FeatureSearch(features=(3, 8)))["feature"].to_pylist() == [8, 3]


def test_a_lookup_a_bigram_and_chance(tmp_path: Path) -> None:
    """Feature 0 is a function of the token, 1 fires on one bigram of 50 x 50 tokens, 2 on the token before alone."""
    rng = np.random.default_rng(4)
    run = make_run(1, sequences=400, longest=60, d_sae=3, sequences_per_shard=200)
    rows = len(run.tokens.token)
    token = rng.integers(0, VOCABULARY, rows).astype(np.int32)
    before = np.roll(token, 1)
    features = np.stack([(token % 7) / 7, (token == 3) & (before == 4), before == 4], axis=1).astype(np.float32)
    tokens = TokenRows(run.tokens.sequence, run.tokens.position, run.tokens.document, token, run.tokens.flags)
    planted = RandomRun(run.record, tokens, run.dense, run.norms, features)
    snapshot = stored(planted, tmp_path, merged=True)
    lookup, bigram, chance = (token_r2(snapshot, SAE, feature, exclude=frozenset()) for feature in range(3))
    assert lookup.corrected == pytest.approx(1, abs=1e-12)
    p, q = 1 / VOCABULARY, 1 / VOCABULARY  # of the token, of the one before: Var(E[f|token]) / Var(f), p q^2 (1-p) / ..
    exact = q * (1 - p) / (1 - p * q)
    assert abs(bigram.corrected - exact) < 0.01
    assert abs(chance.corrected) < 0.003
    assert chance.raw > chance.corrected


@pytest.mark.parametrize("exclude", EXCLUSIONS)
def test_features_active_on_chosen_tokens(snapshot: Snapshot, exclude: frozenset[str]) -> None:
    filters = (
        TokenFilter(tokens=(5,)),
        TokenFilter(first_sequence=20, end_sequence=23),
        TokenFilter(documents=(4, 7)),
        TokenFilter(documents=(4,), first_position=3, end_position=4),
        TokenFilter(documents=(10_000,)),
    )
    for keep in filters:
        counts = RUN.kept(exclude)
        chosen = counts & keep.mask_of(RUN.tokens)
        for order in ("mean", "maximum", "active_tokens", "lift"):
            found = active_features(snapshot, SAE, keep, k=5, order=order, exclude=exclude).to_pylist()
            expected = []
            for feature in range(9):
                values = RUN.features[chosen, feature].astype(np.float64)
                if (values > 0).any():
                    density = (RUN.features[counts, feature] > 0).mean()
                    facts = {"active_tokens": (values > 0).sum(), "mean": values.mean(), "maximum": values.max()}
                    expected.append(
                        {"feature": feature, "density": density, "lift": (values > 0).mean() / density, **facts}
                    )
            expected = sorted(expected, key=lambda row: (-round(row[order], 12), row["feature"]))[:5]
            assert sorted(row["feature"] for row in found) == sorted(row["feature"] for row in expected)
            for row, wanted in zip(found, expected, strict=True):
                assert row[order] == pytest.approx(wanted[order], rel=1e-9)


@pytest.mark.parametrize("exclude", EXCLUSIONS)
def test_features_that_fire_together(snapshot: Snapshot, exclude: frozenset[str]) -> None:
    fires = RUN.features[RUN.kept(exclude)] > 0
    for feature in (1, 4):
        found = cofiring_features(snapshot, SAE, feature, least_tokens=3, exclude=exclude).to_pylist()
        both = {other: int((fires[:, feature] & fires[:, other]).sum()) for other in range(9) if other != feature}
        assert {row["feature"]: row["both_tokens"] for row in found} == {g: n for g, n in both.items() if n >= 3}
        for row in found:
            joint = (fires[:, feature] & fires[:, row["feature"]]).mean()
            independent = fires[:, feature].mean() * fires[:, row["feature"]].mean()
            assert row["lift"] == pytest.approx(joint / independent, rel=1e-9)
        assert [row["lift"] for row in found] == sorted((row["lift"] for row in found), reverse=True)
    assert cofiring_features(snapshot, SAE, 0, exclude=exclude).num_rows == 0


def test_refused(snapshot: Snapshot) -> None:
    for field, call in (
        ("statistic", lambda: FeatureSearch({"beauty": (0, 1)})),
        ("density", lambda: FeatureSearch({"density": (1, 0)})),
        ("k", lambda: FeatureSearch(k=0)),
        ("feature", lambda: feature_table(snapshot, SAE, FeatureSearch(features=(9,)))),
        ("order", lambda: active_features(snapshot, SAE, TokenFilter(), order="beauty")),
        ("least_tokens", lambda: cofiring_features(snapshot, SAE, 1, least_tokens=0)),
        ("feature", lambda: cofiring_features(snapshot, SAE, 99)),
    ):
        with pytest.raises(ActstoreError) as caught:
            call()
        assert caught.value.details["field"] == field
