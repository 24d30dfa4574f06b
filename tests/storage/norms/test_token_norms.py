"""Norms of single tokens of some sequences; tests/worker/test_norm_columns.py has them beside stored activations."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import BadRequest
from actstore_storage.format import products
from actstore_storage.format.products import NORMS, TOKENS
from actstore_storage.norms import by_token as token_norms
from actstore_storage.norms import profile as norms
from actstore_storage.norms.profile import ProfileQuestion, norm_profile
from actstore_storage.norms.revisions import norms_of_runs
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.runs import shard_writer as shard
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import TEXTS, RandomRun, make_run, write_run

SITES = ("resid_pre.1", "resid_post.0", "resid_post.2")
GROUP_ROWS = 16


@pytest.fixture(scope="module")
def run() -> RandomRun:
    return make_run(5, sequences=20)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that sequences lie in one row group, or across two, of several."""
    monkeypatch.setattr(products, "_GROUP_ROWS", GROUP_ROWS)
    monkeypatch.setattr(shard, "TOKENS_FORMAT", replace(products.TOKENS_FORMAT, group_rows=GROUP_ROWS - 5))


@pytest.fixture
def snapshot(run: RandomRun, local_bucket: Bucket, small_groups: None) -> Snapshot:
    write_run(local_bucket, run)
    return open_run(local_bucket, "run")


def slow_table(run: RandomRun, wanted: np.ndarray, sites: tuple[str, ...], divisor: float = 1) -> dict[str, list]:
    """By a look at every row that was written."""
    flags = run.tokens.flags[wanted]
    columns = {
        name: getattr(run.tokens, name)[wanted].tolist() for name in ("sequence", "position", "document", "token")
    }
    columns["text"] = [TEXTS[token] for token in columns["token"]]
    columns["token_class"] = np.select([flags & 1 > 0, flags & 2 > 0], ["bos", "special"], "text").tolist()
    return columns | {site: (run.norms[site][wanted] / np.float32(divisor)).tolist() for site in sites}


def by_token(*sites: str, sequences: tuple[int, int | None] = (0, None), **options: object) -> ProfileQuestion:
    return ProfileQuestion(sites, by="token", sequences=sequences, **options)


@pytest.mark.parametrize("sequences", [(0, None), (0, 1), (4, 1), (2, 7), (19, 1), (17, 400), (3, 3), (11, None)])
@pytest.mark.parametrize("exclude", [frozenset(), frozenset({"bos"}), frozenset({"special"})])
def test_tokens_are_those_that_were_written(
    sequences: tuple[int, int | None], exclude: frozenset[str], run: RandomRun, snapshot: Snapshot
) -> None:
    first, count = sequences
    own, end = run.tokens.sequence, first + (count or 20)
    wanted = run.kept(exclude) & (own >= first) & (own < end)
    found = norm_profile(snapshot, by_token(*SITES, sequences=sequences, kept=KeptTokens(exclude)))
    assert found.to_pydict() == slow_table(run, wanted, SITES)
    assert found["resid_post.2"].type == pa.float32()
    without_first = by_token(*SITES, sequences=sequences, kept=KeptTokens(exclude, True))
    assert norm_profile(snapshot, without_first).to_pydict() == slow_table(
        run, wanted & (run.tokens.position > 0), SITES
    )


def test_all_sites_by_kind_and_layer_and_of_another_measure(run: RandomRun, snapshot: Snapshot) -> None:
    sites = tuple(f"{kind}.{layer}" for kind in ("resid_pre", "resid_post") for layer in range(4))
    found = norm_profile(snapshot, by_token(sequences=(6, 2), quantity="rms"))
    wanted = run.kept(frozenset({"bos"})) & np.isin(run.tokens.sequence, (6, 7))
    expected = slow_table(run, wanted, sites, 8**0.5)
    assert found.column_names == list(expected)
    for name, values in expected.items():
        assert found[name].to_pylist() == (pytest.approx(values) if name in sites else values)


def test_numbers_that_are_not_finite_come_as_they_are(local_bucket: Bucket) -> None:
    run = make_run(3)
    run.norms["resid_post.2"][[4, 9]] = [np.inf, np.nan]
    write_run(local_bucket, run)
    found = norm_profile(open_run(local_bucket, "run"), by_token("resid_post.2", kept=KeptTokens(frozenset())))
    np.testing.assert_array_equal(found["resid_post.2"].to_numpy(), run.norms["resid_post.2"])


def test_sequences_of_shards_that_are_not_committed_are_left_out(run: RandomRun, local_bucket: Bucket) -> None:
    write_run(local_bucket, run, shards=(0, 2))
    found = norm_profile(
        open_run(local_bucket, "run"), by_token("resid_post.2", kept=KeptTokens(frozenset()), sequences=(1, 6))
    )
    assert set(found["sequence"].to_pylist()) == {1, 2, 6}


def test_one_sequence_is_read_from_its_own_row_groups(
    snapshot: Snapshot, run: RandomRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    plain, several = pq.ParquetFile.read_row_group, pq.ParquetFile.read_row_groups

    def one(file: pq.ParquetFile, group: int, columns: list[str], **options: object) -> pa.Table:
        read[TOKENS if "token" in columns else NORMS] += 1
        return plain(file, group, columns=columns, **options)

    def some(file: pq.ParquetFile, groups: list[int], columns: list[str], **options: object) -> pa.Table:
        read[NORMS] += len(groups)
        assert columns == ["resid_post.2"]
        return several(file, groups, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", one)
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", some)
    for sequence in range(20):
        read.clear()
        first_of_shard = sequence - sequence % 3
        rows = np.flatnonzero(run.tokens.sequence[run.tokens.sequence >= first_of_shard] == sequence)
        kept = rows[run.tokens.flags[run.tokens.sequence >= first_of_shard][rows] & 1 == 0]
        if not len(kept):
            continue
        norm_profile(snapshot, by_token("resid_post.2", sequences=(sequence, 1)))
        assert read[NORMS] == kept[-1] // GROUP_ROWS - kept[0] // GROUP_ROWS + 1
        assert read[TOKENS] <= 2 + len(rows) // (GROUP_ROWS - 5)


class CountingBucket(LocalBucket):
    """Objects that are opened of each product, and bytes that are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: Counter[str] = Counter()
        self.read: Counter[str] = Counter()

    def open(self, key: str) -> pa.NativeFile:
        self.opened[Path(key).stem] += 1
        return pa.PythonFile(_Counted(self, key), "r")


class _Counted:
    def __init__(self, bucket: CountingBucket, key: str) -> None:
        self._file, self._counts, self._product = LocalBucket.open(bucket, key), bucket.read, Path(key).stem
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._counts[self._product] += len(data)
        return data


def test_one_sequence_of_a_large_run_is_a_small_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_GROUP_ROWS", 1024)
    run = make_run(1, sequences=900, longest=60, sequences_per_shard=450)
    bucket = CountingBucket(tmp_path)
    write_run(bucket, run, batch_sequences=450)
    snapshot = open_run(bucket, "run")
    bucket.read.clear()
    found = norm_profile(snapshot, by_token("resid_post", sequences=(700, 1)))
    assert set(found["sequence"].to_pylist()) == {700}
    whole = {name: [commit.objects[name].bytes for commit in snapshot.commits] for name in (NORMS, TOKENS)}
    assert set(bucket.read) == {NORMS, TOKENS}
    # A reader begins with the last 64 kB of a file, where the footer is; then four columns of at most two row groups.
    assert bucket.read[NORMS] < 2**16 + 2 * 4 * 4200 < whole[NORMS][1] / 3
    assert bucket.read[TOKENS] <= 2**16 + max(whole[TOKENS]) / 2


REFUSALS = {
    "no sequences": (ProfileQuestion(by="token"), "ARGUMENT_INVALID", "sequences", "none"),
    "sequences of another group": (
        ProfileQuestion(by="position", sequences=(0, 4)),
        "ARGUMENT_INVALID",
        "sequences",
        "0 to 3",
    ),
    "past the end": (by_token(sequences=(20, 4)), "ARGUMENT_INVALID", "sequences", "20 to 23"),
    "past the end, all": (by_token(sequences=(99, None)), "ARGUMENT_INVALID", "sequences", "99 to the last"),
    "none of them": (by_token(sequences=(3, 0)), "ARGUMENT_INVALID", "sequences", "none"),
    "site": (by_token("mlp_out"), "SITE_UNKNOWN", "site", "mlp_out"),
    "not stored": (by_token("resid_post.2", quantity="centred_l2"), "SITE_UNKNOWN", "site", "resid_post.2"),
    "class": (by_token(kept=KeptTokens(frozenset({"verbs"}))), "ARGUMENT_INVALID", "exclude", "verbs"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str, snapshot: Snapshot) -> None:
    question, reason, field, value = REFUSALS[case]
    with pytest.raises(BadRequest) as refused:
        norm_profile(snapshot, question)
    details = refused.value.details
    assert (refused.value.reason, details["field"], details["value"]) == (reason, field, value)
    assert details["allowed"]


@pytest.mark.parametrize(
    ("case", "words", "allowed"),
    [
        ("no sequences", "norms by token need a range of sequences", "a range of sequences, such as range(4)"),
        ("sequences of another group", "norms by position are always over all sequences", "none, or by='token'"),
        ("past the end", "run run has only 20 sequences, so none of these exist", "committed sequences among 0 to 19"),
    ],
)
def test_what_is_refused_says_what_to_ask_instead(case: str, words: str, allowed: str, snapshot: Snapshot) -> None:
    with pytest.raises(BadRequest, match=words) as refused:
        norm_profile(snapshot, REFUSALS[case][0])
    assert refused.value.details["allowed"] == allowed


def test_more_values_than_one_answer_holds_are_refused(
    run: RandomRun, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = by_token("resid_post", kept=KeptTokens(frozenset()))
    monkeypatch.setattr(token_norms, "TOKEN_NORM_VALUES_MAX", 4 * len(run.tokens.token))
    assert norm_profile(snapshot, question).num_rows == len(run.tokens.token)
    monkeypatch.setattr(token_norms, "TOKEN_NORM_VALUES_MAX", 4 * len(run.tokens.token) - 1)
    with pytest.raises(BadRequest, match="the limit is") as refused:
        norm_profile(snapshot, question)
    details = refused.value.details
    assert (refused.value.reason, details["field"]) == ("LIMIT_EXCEEDED", "sequences")
    assert details["value"] == str(4 * len(run.tokens.token))
    # Those that do not count are not counted.
    assert norm_profile(snapshot, by_token("resid_post")).num_rows


def test_a_question_that_is_too_large_ends_early(
    run: RandomRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = CountingBucket(tmp_path)
    write_run(bucket, run)
    snapshot = open_run(bucket, "run")
    bucket.opened.clear()
    monkeypatch.setattr(token_norms, "TOKEN_NORM_VALUES_MAX", 3)
    with pytest.raises(BadRequest, match="the limit is 3"):
        norm_profile(snapshot, by_token("resid_post.2", kept=KeptTokens(frozenset())))
    assert bucket.opened == {TOKENS: 1}


def test_an_exclusion_may_leave_nothing(local_bucket: Bucket) -> None:
    write_run(local_bucket, make_run(5, longest=1))
    with pytest.raises(BadRequest, match="bos excluded") as refused:
        norm_profile(open_run(local_bucket, "run"), by_token("resid_post.2", sequences=(0, 2)))
    assert refused.value.reason == "NOTHING_LEFT"


def test_a_run_without_commits_has_no_tokens(run: RandomRun, local_bucket: Bucket) -> None:
    create_run(local_bucket, run.record)
    with pytest.raises(BadRequest, match="0 of 7 shards are committed") as refused:
        norm_profile(open_run(local_bucket, "run"), by_token())
    assert refused.value.details["field"] == "sequences"
    with pytest.raises(BadRequest, match="by='layer'"):
        norms.norm_histogram(open_run(local_bucket, "run"), by_token(), bins=3)


def test_tokens_are_of_one_run_and_no_statistics(snapshot: Snapshot) -> None:
    question = by_token("resid_post.2", sequences=(2, 2))
    found = norms_of_runs([snapshot], question)
    assert found.profile.equals(norm_profile(snapshot, question))
    assert not found.from_statistics
    with pytest.raises(BadRequest, match="one run at a time") as refused:
        norms_of_runs([snapshot] * 2, question)
    assert refused.value.details["field"] == "by"
