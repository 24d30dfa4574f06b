"""Profiles of L2 norms by group, and what is refused; tests/worker/test_norm_columns.py has other quantities."""

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.format.norm_columns import NormColumn
from actstore_storage.format.sites import Site
from actstore_storage.norms import profile as norms
from actstore_storage.norms.profile import ProfileQuestion, norm_histogram, norm_profile
from actstore_storage.norms.rows import HISTOGRAM_BINS_MAX, KeptTokens
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import RandomRun, make_run, write_run

SITE = "resid_post.2"


@pytest.fixture(scope="module")
def run() -> RandomRun:
    return make_run(5, sequences=20)


@pytest.fixture
def snapshot(run: RandomRun, local_bucket: Bucket) -> Snapshot:
    """As before anything but L2 was stored."""
    write_run(local_bucket, run)
    return open_run(local_bucket, "run")


@pytest.mark.parametrize("by", ["position", "document", "token_class"])
def test_groups_of_l2_norms(by: str, run: RandomRun, snapshot: Snapshot) -> None:
    question = ProfileQuestion((SITE,), by=by, kept=KeptTokens(frozenset({"special"})))
    kept = run.kept(question.kept.exclude)
    flags = run.tokens.flags
    classes = np.select([flags & 1 > 0, flags & 2 > 0], ["bos", "special"], "text")
    labels = classes if by == "token_class" else getattr(run.tokens, by)
    rows = norm_profile(snapshot, question).to_pylist()
    assert {row[by] for row in rows} == set(labels[kept].tolist())
    for row in rows:
        values = run.norms[SITE][kept & (labels == row[by])].astype(np.float64)
        assert (row["tokens"], row["minimum"], row["maximum"]) == (len(values), values.min(), values.max())
        assert row["standard_deviation"] == pytest.approx(values.std(), rel=1e-9, abs=1e-12)
        assert [row[f"q{place}"] for place in norms.DEFAULT_QUANTILES] == np.quantile(
            values, norms.DEFAULT_QUANTILES
        ).tolist()


@pytest.mark.parametrize("by", ["layer", "site", "token_class", "position", "document"])
def test_quantiles_that_nobody_asks_for_change_nothing_else(by: str, snapshot: Snapshot) -> None:
    with_them = norm_profile(snapshot, ProfileQuestion(("resid_post",), by=by, quantiles=(0.5,), exact=True))
    without = norm_profile(snapshot, ProfileQuestion(("resid_post",), by=by, quantiles=()))
    assert set(with_them.column_names) - set(without.column_names) == {"q0.5", "rank_error"}
    for row, same in zip(without.to_pylist(), with_them.to_pylist(), strict=True):
        assert list(row.values()) == [
            pytest.approx(same[name], rel=1e-9) if isinstance(value, float) else same[name]
            for name, value in row.items()
        ]


def test_norms_that_are_not_finite_are_in_no_group(local_bucket: Bucket) -> None:
    run = make_run(3)
    run.norms[SITE][[4, 9]] = [np.inf, np.nan]
    write_run(local_bucket, run)
    question = ProfileQuestion((SITE,), by="position", kept=KeptTokens(frozenset()))
    rows = norm_profile(open_run(local_bucket, "run"), question).to_pylist()
    assert sum(row["tokens"] for row in rows) == len(run.norms[SITE]) - 2


def test_norms_that_are_not_finite_are_counted_by_layer_and_over_all_layers(local_bucket: Bucket) -> None:
    run = make_run(3)
    run.norms["resid_post.1"][[4, 9]] = [np.inf, np.nan]
    run.norms["resid_post.2"][[1, 2, 3]] = -np.inf
    write_run(local_bucket, run)
    snapshot = open_run(local_bucket, "run")
    for by, expected in (("layer", [0, 2, 3, 0]), ("site", [5])):
        rows = norm_profile(snapshot, ProfileQuestion(("resid_post",), by=by, kept=KeptTokens(frozenset())))
        assert rows["non_finite"].to_pylist() == expected
        assert sum(rows["tokens"].to_pylist()) == 4 * len(run.tokens.token) - 5


REFUSALS = {
    "quantity": (ProfileQuestion(quantity="linf"), "ARGUMENT_INVALID", "quantity", "linf"),
    "group": (ProfileQuestion(by="head"), "ARGUMENT_INVALID", "by", "head"),
    "kind that is not stored": (ProfileQuestion(("resid_mid",)), "SITE_UNKNOWN", "site", "resid_mid"),
    "no kind": (ProfileQuestion(("residual",)), "SITE_UNKNOWN", "site", "residual"),
    "old run": (ProfileQuestion((SITE,), "standard_deviation"), "SITE_UNKNOWN", "site", SITE),
    "old run, all sites": (ProfileQuestion(quantity="cosine_to_next"), "SITE_UNKNOWN", "site", "cosine_to_next"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str, snapshot: Snapshot) -> None:
    question, reason, field, value = REFUSALS[case]
    with pytest.raises(BadRequest) as refused:
        norm_profile(snapshot, question)
    details = refused.value.details
    assert (refused.value.reason, details["field"], details["value"]) == (reason, field, value)
    if case == "kind that is not stored":
        assert "has no norms of 'resid_mid'" in refused.value.message
        assert "resid_mid" not in str(details["allowed"])
    if case.startswith("old run"):
        assert question.quantity in refused.value.message
        assert "captured by an early version" in refused.value.message


def test_a_run_of_which_some_shards_are_older_is_refused(local_bucket: Bucket) -> None:
    run = make_run(5, sequences=6)
    write_run(local_bucket, run, shards=(0,))
    columns = [NormColumn("centred_l2", Site(layer, "resid_post")) for layer in range(4)]
    with ShardWriter(local_bucket, run.record, 1, "new", columns=columns) as writer:
        for sequence in run.record.shard_sequences(1):
            tokens, dense, values, features = run.part(run.tokens.sequence == sequence)
            centred = {column.name: values[str(column.site)] / 2 for column in columns}
            writer.add(tokens, dense, values | centred, features)
        assert writer.commit()
    snapshot = open_run(local_bucket, "run")
    with pytest.raises(BadRequest, match="some of its shards were captured by an early version"):
        norm_profile(snapshot, ProfileQuestion(("resid_post",), "centred_l2"))
    assert norm_profile(snapshot, ProfileQuestion(("resid_post",))).num_rows == 4


def test_a_run_of_which_nothing_is_captured_has_no_norms(local_bucket: Bucket) -> None:
    create_run(local_bucket, make_run(5).record)
    for exact in (False, True):
        with pytest.raises(BadRequest, match="in 0 committed shards") as refused:
            norm_profile(open_run(local_bucket, "run"), ProfileQuestion((SITE,), exact=exact))
        assert refused.value.reason == "NOTHING_LEFT"


def test_sites_of_which_nothing_is_left_are_named_from_the_first_to_the_last(local_bucket: Bucket) -> None:
    run = make_run(5)
    for layer in range(4):
        run.norms[f"resid_post.{layer}"][:] = np.nan
    write_run(local_bucket, run)
    snapshot = open_run(local_bucket, "run")
    for by, where in (("site", "resid_post.0 and resid_post.3"), ("layer", "resid_post.0")):
        question = ProfileQuestion(("resid_post",), by=by, kept=KeptTokens(frozenset()))
        with pytest.raises(BadRequest, match=rf"no token of {where} is left .* in 4 .*\(nothing excluded\)"):
            norm_profile(snapshot, question)


def test_a_document_has_its_source_beside_it(snapshot: Snapshot) -> None:
    names = norm_profile(snapshot, ProfileQuestion((SITE,), by="document", quantiles=())).column_names
    assert names[:6] == ["site", "layer", "document", "source", "row", "tokens"]


def test_a_position_left_out_may_leave_nothing(local_bucket: Bucket) -> None:
    run = make_run(5, longest=1)
    write_run(local_bucket, run)
    question = ProfileQuestion((SITE,), kept=KeptTokens(frozenset(), True))
    for ask in (norm_profile, lambda snapshot, asked: norm_histogram(snapshot, asked, bins=3)):
        with pytest.raises(BadRequest, match="position_0 excluded") as refused:
            ask(open_run(local_bucket, "run"), question)
        assert refused.value.reason == "NOTHING_LEFT"


def test_a_run_without_commits_has_nothing_left(run: RandomRun, local_bucket: Bucket) -> None:
    create_run(local_bucket, run.record)
    for quantity in ("l2", "centred_l2"):
        with pytest.raises(BadRequest) as refused:
            norm_profile(open_run(local_bucket, "run"), ProfileQuestion(quantity=quantity))
        assert refused.value.reason == "NOTHING_LEFT"


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"bins": 0}, "bins", "ARGUMENT_INVALID"),
        ({"bins": HISTOGRAM_BINS_MAX + 1}, "bins", "LIMIT_EXCEEDED"),
        ({"edges": (1.0,)}, "edges", "ARGUMENT_INVALID"),
        ({"edges": (1.0, 1.0)}, "edges", "ARGUMENT_INVALID"),
        ({"edges": (1.0, float("nan"))}, "edges", "ARGUMENT_INVALID"),
    ],
)
def test_histograms_that_are_refused(options: dict, field: str, reason: str, snapshot: Snapshot) -> None:
    with pytest.raises(BadRequest) as refused:
        norm_histogram(snapshot, ProfileQuestion(), **options)
    assert (refused.value.reason, refused.value.details["field"]) == (reason, field)
    with pytest.raises(BadRequest, match="by='layer'"):
        norm_histogram(snapshot, ProfileQuestion(by="position"), bins=3)


LIMITS = {"GROUPED_TOKENS_MAX": "position", "QUANTILE_TOKENS_MAX": "site", "PROFILE_ROWS_MAX": "layer"}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, name, 3)
    with pytest.raises(BadRequest) as refused:
        norm_profile(snapshot, ProfileQuestion(by=LIMITS[name], exact=True))
    assert refused.value.reason == "LIMIT_EXCEEDED"


def test_one_norm_alone_has_a_bin(local_bucket: Bucket) -> None:
    run = make_run(5, sequences=1, longest=1, sequences_per_shard=1)
    write_run(local_bucket, run)
    question = ProfileQuestion((SITE,), kept=KeptTokens(frozenset()))
    [row] = norm_histogram(open_run(local_bucket, "run"), question, bins=1).to_pylist()
    assert (row["low"], row["high"], row["count"]) == (run.norms[SITE][0], run.norms[SITE][0], 1)
