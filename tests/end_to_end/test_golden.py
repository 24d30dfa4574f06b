"""Stores that earlier versions wrote, kept as they were: every later version must read them.

What the runs of `golden/format-1` and `format-4` hold is told at the top of tests/stored_run.py, which wrote them, and
is computed again here from that text alone, so that a change of the writer cannot change what is expected.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import actstore
from actstore_storage.format.specification import FORMAT_VERSION, FORMATS_READ, FORMATS_WRITTEN

GOLDEN = Path(__file__).parents[1] / "storage/golden"
SAE = "planted-sae"


@pytest.fixture(params=["format-1/float32", "format-1/bfloat16", "format-4/float32"])
def golden(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """The store, and a run in it that is named by its dtype."""
    store, _, name = request.param.partition("/")
    return GOLDEN / store, name


@pytest.fixture
def run(golden: tuple[Path, str], tmp_path: Path) -> actstore.Run:
    store, name = golden
    return actstore.connect(str(shutil.copytree(store, tmp_path / "store"))).run(name)


def test_a_run_has_every_token_and_the_defaults_of_its_time(run):
    assert run.complete
    assert run.tokens_committed == run.tokens_total == 69
    tokens = run.tokens().to_pandas()
    assert tokens.groupby("sequence").size().tolist() == [16, 5, 16, 9, 4, 12, 7]
    assert tokens.text[0] == "<bos>"
    assert run.specification.dtype == run.name
    assert run.provenance.shards_committed == 3


def test_its_norms_grow_as_planted(run):
    profile = run.norms(exclude=("bos", "special"))
    position = run.tokens().to_pandas().query("flags == 0").position.to_numpy()
    expected = [2 * 1.5**layer * (1 + position / 10).mean() for layer in range(3)]
    np.testing.assert_allclose(profile.to_pandas()["mean"], expected, rtol=1e-6)
    assert run.fit_growth(exclude=("bos", "special")).rate == pytest.approx(1.5, rel=1e-6)


def test_its_tokens_have_their_own_norms(run):
    found = run.token_norms(range(2, 6), exclude=("bos", "special"))
    tokens = run.tokens(range(2, 6)).to_pandas().query("flags == 0")
    assert found.to_pandas()["text"].tolist() == tokens.text.tolist()
    expected = 2 * 1.5 ** np.arange(3) * (1 + tokens.position.to_numpy()[:, None] / 10)
    np.testing.assert_allclose(found.to_numpy("resid_post"), expected, rtol=1e-6)
    assert run.norms(exact=True).table["rank_error"].to_pylist() == [0.0] * 3


def test_its_dense_rows_are_the_bits_of_the_files(golden, run):
    activations = run.activations("resid_post.1")
    folder = golden[0] / "runs" / run.name / "data"
    files = sorted(folder.glob("*/resid_post.1.parquet"))
    raw = [value.as_py() for file in files for value in pq.read_table(file)["activation"]]
    assert activations.table["activation"].to_pylist() == raw
    assert activations.dtype == run.name
    lengths = np.linalg.norm(activations.to_numpy(), axis=1)
    text = activations.to_pandas()["flags"] == 0
    expected = 2 * 1.5 * (1 + activations.to_pandas().position[text] / 10)
    np.testing.assert_allclose(lengths[text], expected, rtol=1e-6 if run.name == "float32" else 2**-7)


def test_its_features_answer(run):
    # Of text tokens where (sequence + position) % 3 == 0, sequence + position / 16: the longest late sequences first.
    tokens = run.tokens().to_pandas()
    fires = tokens[(tokens["flags"] == 0) & ((tokens.sequence + tokens.position) % 3 == 0)]
    values = fires.sequence + fires.position / 16
    statistics = run.feature(SAE, 3).statistics()
    assert statistics.active_tokens == len(fires)
    assert statistics.maximum == values.max()
    best = run.feature(SAE, 3).top(3).to_pandas().activation.tolist()
    assert best == values.groupby(fires.sequence).max().nlargest(3).tolist()


@pytest.fixture
def selected(tmp_path: Path) -> actstore.Run:
    """A run of format 2 with all that is new in it.

    Of the same tokens; dense rows of even positions: of token row i, z.1.0 has i * (1, -1, 0.5, 0) and resid_post.1 has
    i + 0..7, in float16, but of sequence 4 ten thousand times that, so that shard 1 had to be widened. In sequence 6,
    position 3 is a sink with a norm of 700. The commits of shards 0 and 1 are folded into a checkpoint.
    """
    store = shutil.copytree(GOLDEN / "format-2", tmp_path / "store")
    return actstore.connect(str(store)).run("selected")


def test_a_run_of_format_2_says_what_was_asked(selected):
    asked = selected.specification
    assert selected.complete
    assert asked.positions == actstore.Positions.every(2)
    assert (asked.storage_dtype, asked.widen_on_overflow, asked.packing) == ("float16", True, True)
    assert asked.dataset.row_filters == (actstore.RowFilter("language", "in", ("en", "fr")),)
    assert (asked.dataset.max_documents, asked.sink_ratio) == (6, 10.0)


def test_its_chosen_rows_are_as_planted(selected):
    tokens = selected.tokens().to_pandas()
    row = np.flatnonzero(tokens.position % 2 == 0)
    both = selected.activations(["resid_post.1", "z.1.0"])
    np.testing.assert_array_equal(both.to_numpy("z.1.0"), row[:, None] * np.array([1, -1, 0.5, 0]))
    scale = np.where(tokens.sequence == 4, 10_000, 1)[row]
    np.testing.assert_array_equal(both.to_numpy("resid_post.1"), (row[:, None] + np.arange(8)) * scale[:, None])
    np.testing.assert_array_equal(both.to_pandas().token, tokens.token[row])


def test_its_sink_is_left_out_where_asked(selected):
    sinks = selected.tokens().to_pandas().query("flags >= 4")
    assert sinks[["sequence", "position"]].values.tolist() == [[6, 3]]
    least = selected.norms(exclude=("bos", "special", "sink")).to_pandas()
    assert (least["maximum"] < 20).all()
    assert selected.provenance.sink_ratio == 10
    assert "looked for" not in repr(selected.norms(exclude="sink"))
    assert (selected.norms(exclude=("bos", "special")).to_pandas()["maximum"] == 700).all()


def test_its_checkpoint_is_read(selected, tmp_path):
    (tmp_path / "store/runs/selected/commits/00000001.json").write_text("not looked at")
    again = actstore.connect(str(tmp_path / "store")).run("selected")
    assert again.complete
    assert len(again.tokens()) == 69
    assert again.provenance == selected.provenance


def test_a_run_of_format_3_has_the_rows_of_another_run(tmp_path):
    """Of the tokens and norms of format 1's; of token row i, feature f of the later SAE is (1 + i % 5) / 4 where
    (i + f) % 3 == 0.
    """
    store = shutil.copytree(GOLDEN / "format-3", tmp_path / "store")
    lab = actstore.connect(str(store))
    over, base = lab.run("over"), lab.run("float32")
    assert over.complete
    assert lab.check().sound
    assert over.tokens().to_pandas().equals(base.tokens().to_pandas())
    assert over.norms(exclude=("bos", "special")).to_pandas().equals(base.norms(exclude=("bos", "special")).to_pandas())
    rows = np.arange(69)
    for feature in range(6):
        values = np.where((rows + feature) % 3 == 0, (1 + rows % 5) / 4, 0)
        statistics = over.feature("later-sae", feature).statistics(exclude=())
        assert statistics.active_tokens == np.count_nonzero(values)
        assert statistics.maximum == values.max()
        assert statistics.mean_when_active == pytest.approx(values[values > 0].mean())
    assert over.feature(SAE, 3).statistics().maximum == 6.375


def test_every_format_that_is_read_has_a_golden_store():
    """A format that is released without one is not known to be read later."""
    found = {json.loads(path.read_text())["format_version"] for path in GOLDEN.glob("format-*/runs/*/run.json")}
    assert found == set(FORMATS_READ)
    for version in FORMATS_READ:
        runs = GOLDEN.glob(f"format-{version}/runs/*/run.json")
        assert version in {json.loads(path.read_text())["format_version"] for path in runs}
    assert set(FORMATS_WRITTEN) <= set(FORMATS_READ)
    assert max(FORMATS_READ) == max(FORMATS_WRITTEN) == FORMAT_VERSION


def test_a_run_of_format_4_is_folded_and_its_index_merged_and_all_of_it_has_its_hash(tmp_path):
    store = shutil.copytree(GOLDEN / "format-4", tmp_path / "store")
    assert len(actstore.connect(str(store)).check()) == 0
    for path in [*store.glob("runs/*/commits/*"), *store.glob("runs/*/data/*/index-*")]:
        path.unlink()
    run = actstore.connect(str(store)).run("float32")
    assert run.complete
    assert run.feature(SAE, 3).top(1).to_pandas().activation.tolist() == [6.375]
    record = next(store.glob("saes/*/sae.json"))
    record.write_bytes(record.read_bytes().replace(b"resid_post.1", b"resid_post.2"))
    found = actstore.connect(str(store)).check().to_pandas().query("kind == 'damaged'")
    assert found.key.tolist() == [f"saes/{SAE}/sae.json"]


@pytest.mark.parametrize("golden", [(GOLDEN / "format-1", "float32")])
def test_a_run_of_format_1_says_that_it_has_only_l2_norms(run):
    with pytest.raises(actstore.BadRequest, match=r"has no standard_deviation.*captured by an early version"):
        run.norms(quantity="standard_deviation")
    positions = run.norms("resid_post.0", exclude=("bos", "special"), by="position").to_pandas()
    np.testing.assert_allclose(positions["mean"], 2 * (1 + positions.position / 10), rtol=1e-6)


def test_norm_columns_of_a_run_that_has_them(tmp_path):
    """The tokens and norms of format 1's, and centred norms that are half of those."""
    store = shutil.copytree(GOLDEN / "norm-columns", tmp_path / "store")
    run = actstore.connect(str(store)).run("columns")
    told = run.norms(exclude=("bos", "special"), quantity="centred_l2").to_pandas()
    position = run.tokens().to_pandas().query("flags == 0").position.to_numpy()
    expected = [1.5**layer * (1 + position / 10).mean() for layer in range(3)]
    np.testing.assert_allclose(told["mean"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        told["q0.5"], [1.5**layer * np.median(1 + position / 10) for layer in range(3)], rtol=1e-6
    )


@pytest.fixture
def sketched(tmp_path: Path) -> actstore.Run:
    """A run with sketches of norms: 108 sequences of 64 tokens in three shards, the first two of them folded.

    At layer 0, text tokens have the norms 1, 2, 3, ... 6791 in some order, the one special token 12,345, every BOS a
    million, and each of twelve sinks 200,000 and its sequence's number. At layer 1, all have half as much more.
    """
    store = shutil.copytree(GOLDEN / "norm-sketches", tmp_path / "store")
    return actstore.connect(str(store)).run("sketched")


TEXT = ("bos", "special", "sink")
SKETCHED = {0: (337, 1691, 3389, 5090, 6467), 1: (489, 2532.75, 5067, 7636.5, 9684)}


def test_sketched_quantiles_are_what_they_were_and_near_the_planted_ones(sketched):
    found = sketched.norms(exclude=TEXT).to_pandas()
    quantiles = found[["q0.05", "q0.25", "q0.5", "q0.75", "q0.95"]]
    assert {row.layer: tuple(quantiles.loc[at]) for at, row in found.iterrows()} == SKETCHED
    for layer, values in SKETCHED.items():
        ranks = np.array(values) / 1.5**layer / 6791
        assert np.abs(ranks - (0.05, 0.25, 0.5, 0.75, 0.95)).max() < 0.0165
    assert found.rank_error.tolist() == pytest.approx([0.0165] * 2, abs=1e-4)
    exact = sketched.norms(exclude=TEXT, exact=True).to_pandas()
    assert exact["q0.5"].tolist() == [3396, 5094]
    assert found["mean"].tolist() == exact["mean"].tolist() == [3396, 5094]


def test_sketched_histograms_are_what_they_were(sketched):
    found = sketched.norms("resid_post.0", exclude=TEXT, histogram=[0, 1000, 3000, 6000, 7000]).histogram
    assert found["count"].to_pylist() == [1006, 1990, 3000, 795]
    exact = sketched.norms("resid_post.0", exclude=TEXT, histogram=[0, 1000, 3000, 6000, 7000], exact=True).histogram
    assert exact["count"].to_pylist() == [999, 2000, 3000, 792]


def test_sketches_of_few_values_have_all_of_them(sketched):
    found = sketched.norms("resid_post.0", exclude=(), by="token_class", quantiles=(0, 0.5, 1)).to_pandas()
    assert found.set_index("token_class")[["tokens", "q0", "q0.5", "q1"]].to_dict("index") == {
        "text": {"tokens": 6791, "q0": 1, "q0.5": 3389, "q1": 6791},
        "bos": {"tokens": 108, "q0": 1e6, "q0.5": 1e6, "q1": 1e6},
        "special": {"tokens": 1, "q0": 12_345, "q0.5": 12_345, "q1": 12_345},
        "sink": {"tokens": 12, "q0": 200_004, "q0.5": 200_053.5, "q1": 200_103},
    }


def test_sketches_are_read_from_the_checkpoint_and_from_shards_that_it_does_not_hold(sketched, tmp_path):
    assert actstore.connect(str(tmp_path / "store")).check().sound
    data = tmp_path / "store/runs/sketched/data"
    before = sketched.norms()
    for name in ("norms", "tokens"):
        for path in data.glob(f"*/{name}.parquet"):
            path.unlink()
    for shard in (0, 1):
        (data / f"{shard:08}-attempt{shard}/norm-sketches.parquet").unlink()
    assert actstore.connect(str(tmp_path / "store")).run("sketched").norms() == before


def test_docs_format_md_is_enough_to_check_every_hash() -> None:
    """With a JSON parser and Parquet alone, as the page promises."""
    store = GOLDEN / "format-4"
    for path in store.rglob("*.json"):
        _record(path.read_bytes())
    run = _record((store / "runs/float32/run.json").read_bytes())
    specification = run["specification"]
    assert _sha256(_canonical(specification)) == run["specification_sha256"]
    of_rows = _sha256(_canonical(specification | {"saes": []}))
    for path in store.glob("runs/float32/commits/*.json"):
        commit = _record(path.read_bytes())
        for product, item in commit["objects"].items():
            of_sae = f"/{'d' * 64}" if product.endswith(SAE) else ""
            _check_object(store, item, f"{of_rows}/{commit['shard']:08d}/{product}{of_sae}")
    manifest = _record((store / f"runs/float32/index/{SAE}/segments/00000000-00000002.json").read_bytes())
    named = {"part-00000": manifest["parts"][0]["object"], "statistics": manifest["statistics"]}
    for name, item in {**named, "token-counts": manifest["token_counts"]}.items():
        _check_object(store, item, f"float32/{SAE}/00000000-00000002/{name}")
    checkpoint = pq.read_table(store / "runs/float32/checkpoints/00000000-00000002.parquet")
    assert _record(checkpoint.schema.metadata[b"actstore.summary"])["run"] == "float32"
    assert [_record(one)["shard"] for one in checkpoint["record"].to_pylist()] == [0, 1, 2]
    texts = pq.read_table(store / f"tokenizers/{'b' * 64}/token-texts.parquet")
    columns = [texts["text"].to_pylist(), [part and part.hex() for part in texts["bytes"].to_pylist()]]
    assert _record(texts.schema.metadata[b"actstore.record"]) == {
        "tokenizer_sha256": "b" * 64, "texts_sha256": _sha256(_canonical(columns)),
    }  # fmt: skip


def _record(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(data)
    assert fields.pop("record_sha256") == _sha256(_canonical(fields))
    return fields


def _check_object(store: Path, item: dict[str, Any], of: str) -> None:
    data = (store / item["key"]).read_bytes()
    assert (item["bytes"], item["sha256"]) == (len(data), _sha256(data))
    footer = int.from_bytes(data[-8:-4], "little") + 8
    assert item["footer_sha256"] == _sha256(data[-footer:])
    metadata = pq.read_metadata(store / item["key"])
    assert (metadata.num_rows, metadata.metadata[b"actstore.of"].decode()) == (item["rows"], of)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
