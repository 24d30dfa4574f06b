"""Every stored answer equals what a slow look at all raw rows says."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError, NotThere
from actstore_storage.features.examples import WINDOW_TOKENS_MAX
from actstore_storage.features.sampling import EXAMPLES_MAX
from actstore_storage.features.statistics import BINS_MAX, feature_statistics, top_examples
from actstore_storage.norms.growth import fit_growth
from actstore_storage.norms.profile import QUANTILES_MAX, ProfileQuestion, norm_profile
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import SAE, RandomRun, make_run, slow_growth, slow_top_examples, write_run, write_shard

EXCLUSIONS = [frozenset(), frozenset({"bos"}), frozenset({"special"}), frozenset({"bos", "special"})]


@pytest.fixture(scope="module")
def run() -> RandomRun:
    return make_run(7)


@pytest.fixture(scope="module")
def snapshot(run: RandomRun, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    from actstore_storage.bucket.opening import open_bucket

    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    write_run(bucket, run)
    return open_run(bucket, "run")


@pytest.mark.parametrize("exclude", EXCLUSIONS)
@pytest.mark.parametrize("feature", range(6))
def test_top_examples(run: RandomRun, snapshot: Snapshot, feature: int, exclude: frozenset[str]) -> None:
    for k, before, after in ((20, 12, 6), (3, 2, 1), (1, 0, 0)):
        found = top_examples(
            snapshot, SAE, feature, k=k, tokens_before=before, tokens_after=after, exclude=exclude
        ).to_pylist()
        assert found == slow_top_examples(run, feature, k, before, after, exclude)


@pytest.mark.parametrize("exclude", EXCLUSIONS)
@pytest.mark.parametrize("feature", range(6))
def test_feature_statistics(run: RandomRun, snapshot: Snapshot, feature: int, exclude: frozenset[str]) -> None:
    values = run.features[run.kept(exclude), feature].astype(np.float64)
    active = values[values > 0]
    for bins in (1, 7, 40):
        found = feature_statistics(snapshot, SAE, feature, bins=bins, exclude=exclude)
        assert (found.tokens, found.active_tokens) == (len(values), len(active))
        assert found.density == len(active) / len(values)
        if not len(active):
            assert (found.maximum, found.mean_when_active, found.histogram.num_rows) == (0, 0, 0)
            continue
        assert found.maximum == active.max()
        assert found.mean_when_active == pytest.approx(active.mean(), rel=1e-12)
        assert found.histogram.num_rows == bins
        for low, high, count in zip(*found.histogram.to_pydict().values(), strict=True):
            assert count == sum(low < value <= high for value in active)
        assert sum(found.histogram["count"].to_pylist()) == len(active)
        assert found.histogram["low"][0].as_py() == 0
        assert found.histogram["high"][-1].as_py() == found.maximum


@pytest.mark.parametrize("exclude", EXCLUSIONS)
def test_norm_profile(run: RandomRun, snapshot: Snapshot, exclude: frozenset[str]) -> None:
    profile = norm_profile(
        snapshot, ProfileQuestion(kept=KeptTokens(exclude), quantiles=(0, 0.05, 0.5, 0.999, 1))
    ).to_pylist()
    expected = [(kind, layer) for kind in ("resid_pre", "resid_post") for layer in range(4)]
    assert [(row["site"], row["layer"]) for row in profile] == expected
    for row in profile:
        values = run.norms[f"{row['site']}.{row['layer']}"][run.kept(exclude)].astype(np.float64)
        assert row["tokens"] == len(values)
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert row["standard_deviation"] == pytest.approx(values.std(), rel=1e-12)
        assert row["geometric_mean"] == pytest.approx(np.exp(np.log(values).mean()), rel=1e-12)
        assert (row["minimum"], row["maximum"]) == (values.min(), values.max())
        for quantile in (0, 0.05, 0.5, 0.999, 1):
            assert row[f"q{quantile}"] == np.quantile(values, quantile)


def test_norm_profile_of_chosen_sites(snapshot: Snapshot) -> None:
    sites = ["blocks.2.hook_resid_post", "resid_pre", "resid_post.2"]
    chosen = norm_profile(snapshot, ProfileQuestion(sites, quantiles=()))
    rows = chosen.select(["site", "layer"]).to_pylist()
    assert rows == [{"site": "resid_pre", "layer": n} for n in range(4)] + [{"site": "resid_post", "layer": 2}]
    assert chosen.column_names[-1] == "maximum"


def test_norms_that_are_not_finite_are_counted_and_left_out(local_bucket: Bucket) -> None:
    run = make_run(3)
    run.norms["resid_post.0"][[4, 9, 20]] = [np.inf, np.nan, np.inf]
    write_run(local_bucket, run)
    snapshot = open_run(local_bucket, "run")
    assert sum(commit.non_finite["resid_post.0"] for commit in snapshot.commits) == 3
    values = run.norms["resid_post.0"].astype(np.float64)
    finite = values[np.isfinite(values)]
    [row] = norm_profile(snapshot, ProfileQuestion(sites=["resid_post.0"], kept=KeptTokens(frozenset()))).to_pylist()
    assert row["tokens"] == len(values) - 3
    assert row["mean"] == pytest.approx(finite.mean(), rel=1e-12)
    assert row["q0.5"] == np.quantile(finite, 0.5)
    assert norm_profile(snapshot, ProfileQuestion(["resid_post"]))["non_finite"].to_pylist() == [3, 0, 0, 0]


def test_quantiles_that_differ_are_columns_that_differ(run: RandomRun, snapshot: Snapshot) -> None:
    asked = (0.9999999, 1.0, 0.05, 0.5, np.float64(0.25), 1, -0.0)
    profile = norm_profile(
        snapshot, ProfileQuestion(sites=["resid_post.0"], quantiles=asked, kept=KeptTokens(frozenset()))
    )
    names = profile.column_names[profile.column_names.index("maximum") + 1 : profile.column_names.index("rank_error")]
    assert names == ["q0.9999999", "q1", "q0.05", "q0.5", "q0.25", "q0"]
    [row] = profile.to_pylist()
    for name in names:
        assert row[name] == np.quantile(run.norms["resid_post.0"].astype(np.float64), float(name[1:]))


def test_a_norm_of_zero_makes_the_geometric_mean_zero(local_bucket: Bucket) -> None:
    run = make_run(3)
    run.norms["resid_pre.0"][5] = 0
    write_run(local_bucket, run)
    question = ProfileQuestion(["resid_pre.0"], kept=KeptTokens(frozenset()))
    [row] = norm_profile(open_run(local_bucket, "run"), question).to_pylist()
    assert (row["geometric_mean"], row["minimum"]) == (0, 0)


@pytest.mark.parametrize("exclude", EXCLUSIONS)
@pytest.mark.parametrize("layers", [None, (0, 2), (1, 3)])
def test_fit_growth(
    run: RandomRun, snapshot: Snapshot, layers: tuple[int, int] | None, exclude: frozenset[str]
) -> None:
    growth = fit_growth(snapshot, site="resid_pre", layers=layers, kept=KeptTokens(exclude))
    numbers = list(range((layers or (0, 3))[0], (layers or (0, 3))[1] + 1))
    means = [float(run.norms[f"resid_pre.{n}"][run.kept(exclude)].astype(np.float64).mean()) for n in numbers]
    rate, r_squared = slow_growth(means, numbers)
    assert (growth.first_layer, growth.last_layer) == (numbers[0], numbers[-1])
    assert growth.rate == pytest.approx(rate, rel=1e-10)
    assert growth.r_squared == pytest.approx(r_squared, abs=1e-10)
    assert growth.points["layer"].to_pylist() == numbers
    assert growth.points["mean"].to_pylist() == pytest.approx(means, rel=1e-12)
    ratios = [after / before for before, after in pairwise(means)]
    assert growth.points["ratio"].to_pylist()[0] is None
    assert growth.points["ratio"].to_pylist()[1:] == pytest.approx(ratios, rel=1e-12)
    fitted = np.polyval(np.polyfit(numbers, np.log(means), 1), numbers)
    assert np.log(growth.points["fitted"].to_numpy()) == pytest.approx(fitted, abs=1e-10)


def test_fit_growth_recovers_a_planted_rate(local_bucket: Bucket) -> None:
    run = make_run(5, layers=12)
    base = np.random.default_rng(0).lognormal(size=len(run.tokens.token))
    for layer in range(12):
        run.norms[f"resid_post.{layer}"][:] = base * 1.045**layer
    write_run(local_bucket, run)
    growth = fit_growth(open_run(local_bucket, "run"))
    assert growth.rate == pytest.approx(1.045, abs=1e-6)
    assert growth.r_squared == pytest.approx(1, abs=1e-9)


def test_norms_that_do_not_vary_are_explained_wholly(local_bucket: Bucket) -> None:
    run = make_run(5)
    for norms in run.norms.values():
        norms[:] = 2.5
    write_run(local_bucket, run)
    growth = fit_growth(open_run(local_bucket, "run"))
    assert (growth.rate, growth.r_squared) == (1, 1)


def test_answers_are_of_the_snapshot_that_they_are_given(run: RandomRun, local_bucket: Bucket) -> None:
    write_run(local_bucket, run, shards=(0, 2))
    before = open_run(local_bucket, "run")
    early = [*ask_everything(before)]
    write_run(local_bucket, run, shards=(1, 3))
    assert [*ask_everything(before)] == early
    after = open_run(local_bucket, "run")
    assert (before.complete, after.complete) == (False, True)
    assert before.name != after.name
    assert [*ask_everything(after)] != early
    assert top_examples(after, SAE, 4).to_pylist() == slow_top_examples(run, 4, 20, 12, 6, frozenset({"bos"}))


def ask_everything(snapshot: Snapshot) -> list[object]:
    examples = top_examples(snapshot, SAE, 4).to_pylist()
    statistics = feature_statistics(snapshot, SAE, 4)
    profile = norm_profile(snapshot).to_pylist()
    return [examples, statistics, profile, fit_growth(snapshot), snapshot.name, snapshot.tokens_committed]


def test_a_run_without_commits(run: RandomRun, local_bucket: Bucket) -> None:
    write_run(local_bucket, run, shards=())
    snapshot = open_run(local_bucket, "run")
    assert top_examples(snapshot, SAE, 1).num_rows == 0
    assert feature_statistics(snapshot, SAE, 1).density == 0
    for ask in (norm_profile, fit_growth):
        with pytest.raises(ActstoreError) as caught:
            ask(snapshot)
        assert caught.value.reason == "NOTHING_LEFT"


REFUSALS = [
    (
        lambda s: top_examples(s, SAE, 6),
        "FEATURE_OUT_OF_RANGE",
        {"field": "feature", "value": "6", "allowed": "0 to 5"},
    ),
    (lambda s: feature_statistics(s, SAE, -1), "FEATURE_OUT_OF_RANGE", {"value": "-1", "allowed": "0 to 5"}),
    (lambda s: top_examples(s, "other", 0), "SAE_NOT_FOUND", {"field": "sae", "value": "other", "allowed": SAE}),
    (lambda s: top_examples(s, SAE, 0, k=EXAMPLES_MAX + 1), "LIMIT_EXCEEDED", {"field": "k", "value": "1001"}),
    (lambda s: top_examples(s, SAE, 0, k=0), "ARGUMENT_INVALID", {"field": "k", "allowed": "1 to 1000"}),
    (
        lambda s: top_examples(s, SAE, 0, tokens_before=WINDOW_TOKENS_MAX + 1),
        "LIMIT_EXCEEDED",
        {"field": "tokens_before", "allowed": "0 to 1024"},
    ),
    (lambda s: top_examples(s, SAE, 0, tokens_after=-1), "ARGUMENT_INVALID", {"field": "tokens_after"}),
    (lambda s: feature_statistics(s, SAE, 0, bins=BINS_MAX + 1), "LIMIT_EXCEEDED", {"field": "bins"}),
    (
        lambda s: top_examples(s, SAE, 0, exclude=frozenset({"pad"})),
        "ARGUMENT_INVALID",
        {"allowed": "bos, special, sink"},
    ),
    (lambda s: norm_profile(s, ProfileQuestion(["mlp_out"])), "SITE_UNKNOWN", {"field": "site", "value": "mlp_out"}),
    (lambda s: norm_profile(s, ProfileQuestion(["resid_post.4"])), "SITE_UNKNOWN", {"value": "resid_post.4"}),
    (
        lambda s: norm_profile(s, ProfileQuestion(quantiles=[1.5])),
        "ARGUMENT_INVALID",
        {"field": "quantiles", "allowed": "0 to 1"},
    ),
    (lambda s: norm_profile(s, ProfileQuestion(quantiles=[float("nan")])), "ARGUMENT_INVALID", {"field": "quantiles"}),
    (
        lambda s: norm_profile(s, ProfileQuestion(quantiles=[0.5] * (QUANTILES_MAX + 1))),
        "LIMIT_EXCEEDED",
        {"field": "quantiles"},
    ),
    (lambda s: fit_growth(s, site="z"), "SITE_UNKNOWN", {"value": "z", "allowed": "resid_post, resid_pre"}),
    (lambda s: fit_growth(s, layers=(0, 4)), "LAYER_OUT_OF_RANGE", {"field": "layers", "value": "0 to 4"}),
    (lambda s: fit_growth(s, layers=(2, 3)), "LAYER_OUT_OF_RANGE", {"allowed": "at least 3 of 0, 1, 2, 3"}),
    (lambda s: fit_growth(s, layers=(3, 0)), "LAYER_OUT_OF_RANGE", {"value": "3 to 0"}),
]


@pytest.mark.parametrize(("ask", "reason", "details"), REFUSALS)
def test_refuses(snapshot: Snapshot, ask, reason: str, details: dict[str, str]) -> None:
    with pytest.raises(ActstoreError) as caught:
        ask(snapshot)
    assert caught.value.reason == reason
    assert {key: caught.value.details[key] for key in details} == details


def test_nothing_left_after_exclusion(local_bucket: Bucket) -> None:
    run = make_run(1, longest=1)  # every token is a BOS
    write_run(local_bucket, run)
    with pytest.raises(ActstoreError) as caught:
        norm_profile(open_run(local_bucket, "run"))
    assert caught.value.reason == "NOTHING_LEFT"
    assert caught.value.details["value"] == "bos"


def test_a_feature_index_of_many_row_groups_gives_each_feature_its_rows(local_bucket: Bucket) -> None:
    run = make_run(2, sequences=40, longest=300, d_sae=30, sequences_per_shard=40)
    write_run(local_bucket, run)
    snapshot = open_run(local_bucket, "run")
    with local_bucket.open(snapshot.commits[0].objects["index-sae"].key) as file:
        assert pa.parquet.ParquetFile(file).num_row_groups > 3
    for feature in range(30):
        found = top_examples(snapshot, SAE, feature).to_pylist()
        assert found == slow_top_examples(run, feature, 20, 12, 6, frozenset({"bos"}))
        assert feature_statistics(snapshot, SAE, feature, exclude=frozenset()).active_tokens == np.count_nonzero(
            run.features[:, feature]
        )


def test_provenance_is_of_the_processes_that_captured(run: RandomRun, local_bucket: Bucket) -> None:
    write_run(local_bucket, run, shards=())
    began = open_run(local_bucket, "run").provenance()
    assert (began.attention_implementation, began.device, began.code_version) == ("sdpa", "cpu", "0")
    resumed = replace(
        run, record=replace(run.record, device="cuda", attention_implementation="eager", code_version="1")
    )
    for shard, captured in ((0, resumed), (1, resumed), (2, run), (3, resumed)):
        assert write_shard(local_bucket, captured, shard, "attempt")
        found = open_run(local_bucket, "run").provenance()
        device, attention = ("cuda", "eager") if shard < 2 else ("cuda, cpu", "eager, sdpa")
        assert (found.device, found.attention_implementation) == (device, attention)
    assert found.code_version == "1, 0"


def test_provenance_names_only_the_saes_used(run: RandomRun, snapshot: Snapshot) -> None:
    assert snapshot.provenance().sae_sha256 == {}
    found = snapshot.provenance([SAE])
    assert found == replace(snapshot.provenance(), sae_sha256={SAE: "d" * 64})
    assert found.specification_sha256 == run.record.specification.sha256
    assert (found.shards_committed, found.shards_total) == (4, 4)
    with pytest.raises(NotThere):
        snapshot.provenance(["other"])
