"""Numbers against the planted run, ways out of a table, and arguments that the client refuses by itself."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import actstore
from actstore import BadRequest, Lab, NotFound
from actstore_storage.bucket.opening import open_bucket
from tests.stored_run import D_SAE, DENSE_SITE, FIRING, GROWTH, SAE, SILENT, StoredRun, plant, write_stored_run


def test_a_run_describes_itself(lab: Lab, stored: StoredRun) -> None:
    run = lab.run("planted")
    assert (run.name, run.complete, run.n_layers, run.d_model) == ("planted", True, 3, 8)
    assert (run.tokens_committed, run.tokens_total) == (len(stored.tokens.token),) * 2
    assert run.dense_sites == (DENSE_SITE,)
    assert run.norm_sites == ("resid_post.0", "resid_post.1", "resid_post.2")
    assert run.saes == (actstore.SaeAttachment(SAE, DENSE_SITE, D_SAE),)
    assert run.specification.model.name == run.provenance.model == "planted-model"
    assert run.specification.prepend_bos is True
    assert run.provenance.sae_sha256 == {SAE: "d" * 64}
    assert not lab.run("partial").complete


def test_other_quantities_say_what_they_are_and_what_they_leave_out(lab: Lab, stored: StoredRun) -> None:
    run = lab.run("planted")
    kept = stored.rows(0) & (stored.tokens.position > 0)
    profile = run.norms("resid_post.1", exclude=("position_0",), quantity="standard_deviation", histogram=4)
    deviations = stored.norms["resid_post.1"][kept].astype(np.float64) / 2 / np.sqrt(run.d_model)
    [row] = profile
    assert (row["tokens"], profile.excluded, profile.quantity) == (kept.sum(), ("position_0",), "standard_deviation")
    assert row["mean"] == pytest.approx(deviations.mean(), rel=1e-6)
    assert sum(profile.histogram["count"].to_pylist()) == kept.sum()
    assert not profile.from_statistics
    assert run.norms(quantiles=()).from_statistics
    assert not run.norms().from_statistics
    assert profile.to_dict()["histogram"][0]["low"] == pytest.approx(deviations.min(), rel=1e-6)


def test_norms_are_those_of_the_rows_that_count(lab: Lab, stored: StoredRun) -> None:
    profile = lab.run("planted").norms(exclude=("bos", "special"))
    for row in profile:
        values = stored.norms[f"resid_post.{row['layer']}"][stored.rows(3)].astype(np.float64)
        assert row["tokens"] == len(values)
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
        assert row["q0.95"] == pytest.approx(np.quantile(values, 0.95), rel=1e-6)
    assert profile.excluded == ("bos", "special")
    assert lab.run("planted").fit_growth(exclude=("bos", "special")).rate == pytest.approx(GROWTH, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_activations_widen_exactly(lab: Lab, dtype: str) -> None:
    run = "planted" if dtype == "float32" else dtype
    stored = plant(run, dtype)
    found = lab.run(run).activations("resid_post.1")
    assert (found.dtype, found.d_model) == (dtype, 8)
    assert found.to_numpy().dtype == np.float32
    np.testing.assert_array_equal(found.to_numpy(), stored.dense[DENSE_SITE])
    np.testing.assert_array_equal(np.stack(found.to_pandas()["activation"]), stored.dense[DENSE_SITE])
    vectors = found.to_polars()["activation"]
    assert vectors.dtype == pl.Array(pl.Float32, 8)
    np.testing.assert_array_equal(vectors.to_numpy(), stored.dense[DENSE_SITE])
    assert found.to_arrow().schema.field("activation").metadata[b"dtype"].decode() == dtype
    assert next(iter(found))["activation"] == stored.dense[DENSE_SITE][0].tolist()
    json.dumps(found.to_dict(), allow_nan=False)
    chosen = (stored.tokens.sequence >= 2) & (stored.tokens.sequence < 5)
    some = lab.run(run).activations("resid_post.1", slice(2, 5))
    np.testing.assert_array_equal(some.to_numpy(), stored.dense[DENSE_SITE][chosen])
    assert some.to_arrow()["sequence"].to_pylist() == stored.tokens.sequence[chosen].tolist()


def test_every_finite_and_infinite_bfloat16_widens_to_what_torch_makes_of_it() -> None:
    import pyarrow as pa
    import torch

    from actstore._runs.activations import widen

    bits = np.arange(2**16, dtype=np.uint16)
    # In two chunks, the second a slice of its parent: both an offset and a seam.
    whole = pa.array([row.tobytes() for row in bits.reshape(-1, 4)], pa.binary(8))
    column = pa.chunked_array([whole.slice(0, 100), whole.slice(100)])
    expected = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float().numpy().reshape(-1, 4)
    np.testing.assert_array_equal(widen(column, "bfloat16", 4).view(np.uint32), expected.view(np.uint32))


def test_no_rows_are_a_matrix_of_no_rows(lab: Lab) -> None:
    nothing = lab.run("planted").activations("resid_post.1", documents=[10**6])
    assert nothing.to_numpy().shape == (0, 8)
    assert nothing.to_polars().shape == (0, 6)


def test_tokens_have_their_texts(lab: Lab, stored: StoredRun) -> None:
    tokens = lab.run("planted").tokens(range(1))
    assert tokens.to_arrow()["token"].to_pylist() == stored.tokens.token[:16].tolist()
    assert tokens.to_arrow()["text"][0].as_py() == "<bos>"


def test_where_documents_come_from(lab: Lab, stored: StoredRun) -> None:
    """A file and a row of it, or the file alone; wherever examples, tokens or documents are shown."""
    run = lab.run("planted")
    files = ["in/part-0.jsonl"] * 5 + ["<b>.txt"]
    sources = {document: (file, None if document == 5 else document) for document, file in enumerate(files)}
    for before in (0, 2):
        top = run.feature(SAE, FIRING).top(7, tokens_before=before, tokens_after=before)
        assert {(row["document"], row["source"], row["row"]) for row in top} <= {(d, *s) for d, s in sources.items()}
        assert len({row["document"] for row in top}) > 3
    assert "(in/part-0.jsonl row 4, sequence 5, position" in repr(top)
    html = run.feature(SAE, FIRING).page(live=False)._repr_html_()
    assert "document 4 (in/part-0.jsonl row 4), sequence 5" in html
    assert "document 5 (&lt;b&gt;.txt), sequence 6" in html
    tokens = run.tokens().to_arrow()
    assert [sources[document] for document in stored.tokens.document.tolist()] == list(
        zip(tokens["source"].to_pylist(), tokens["row"].to_pylist(), strict=True)
    )
    profile = run.norms(by="document", sites=["resid_post.0"]).to_arrow()
    assert profile.column_names[2:5] == ["document", "source", "row"]
    assert {row["document"]: (row["source"], row["row"]) for row in profile.to_pylist()} == sources


def test_a_run_without_sources_shows_none(tmp_path: Path) -> None:
    write_stored_run(open_bucket(str(tmp_path)), sources=None)
    with actstore.connect(tmp_path) as lab:
        run = lab.run("planted")
        top = run.feature(SAE, FIRING).top(2)
        assert [(row["source"], row["row"]) for row in top] == [(None, None)] * 2
        assert "(sequence 6, position 6)" in repr(top)
        assert set(run.tokens().to_arrow()["source"].to_pylist()) == {None}
        assert set(run.norms(by="document").to_arrow()["source"].to_pylist()) == {None}


def test_examples_and_statistics(lab: Lab, stored: StoredRun) -> None:
    feature = lab.run("planted").feature(SAE, FIRING)
    values = stored.features[SAE][:, FIRING][stored.rows()]
    top = list(feature.top(1, tokens_before=2, tokens_after=2))
    assert top[0]["activation"] == values.max()
    statistics = feature.statistics(bins=4)
    assert statistics.tokens == len(values)
    assert statistics.active_tokens == np.count_nonzero(values)
    assert statistics.maximum == values.max()
    assert sum(statistics.to_arrow()["count"].to_pylist()) == statistics.active_tokens


def test_the_same_rows_leave_in_every_form(lab: Lab) -> None:
    profile = lab.run("planted").norms()
    rows = profile.to_arrow().to_pylist()
    assert profile.to_pandas().to_dict("records") == rows
    assert profile.to_polars().to_dicts() == rows
    assert list(profile) == rows
    assert len(profile) == 3
    assert json.loads(json.dumps(profile.to_dict()))["rows"] == rows
    assert profile.to_dict()["provenance"]["run"] == "planted"


REFUSED: dict[str, tuple[Callable[[actstore.Run], object], type[Exception], str, str]] = {
    "feature": (lambda run: run.feature(SAE, D_SAE), BadRequest, "FEATURE_OUT_OF_RANGE", "feature"),
    "negative feature": (lambda run: run.feature(SAE, -1), BadRequest, "FEATURE_OUT_OF_RANGE", "feature"),
    "feature that is no number": (lambda run: run.feature(SAE, "3"), BadRequest, "FEATURE_OUT_OF_RANGE", "feature"),
    "sae": (lambda run: run.feature("other", 0), NotFound, "SAE_NOT_FOUND", "sae"),
    "k": (lambda run: run.feature(SAE, 0).top(k=-1), BadRequest, "ARGUMENT_INVALID", "k"),
    "bins": (lambda run: run.feature(SAE, 0).statistics(bins=2.5), BadRequest, "ARGUMENT_INVALID", "bins"),
    "over": (lambda run: run.feature(SAE, 0).uniform(3, over="depth"), BadRequest, "ARGUMENT_INVALID", "over"),
    "threshold": (lambda run: run.feature(SAE, 0).above(-1.0), BadRequest, "ARGUMENT_INVALID", "threshold"),
    "threshold that is none": (
        lambda run: run.feature(SAE, 0).above(float("nan")),
        BadRequest,
        "ARGUMENT_INVALID",
        "threshold",
    ),
    "threshold of a range": (
        lambda run: run.feature(SAE, 0).uniform(3, threshold=1.0),
        BadRequest,
        "ARGUMENT_INVALID",
        "threshold",
    ),
    "seed": (lambda run: run.feature(SAE, 0).uniform(3, seed=2**32), BadRequest, "ARGUMENT_INVALID", "seed"),
    "where": (lambda run: run.feature(SAE, 0).top(where={"tokens": [1]}), BadRequest, "ARGUMENT_INVALID", "where"),
    "tokens of where": (
        lambda run: run.feature(SAE, 0).top(where=actstore.Where(tokens=["a"])),
        BadRequest,
        "ARGUMENT_INVALID",
        "tokens",
    ),
    "side": (lambda run: run.feature(SAE, 0).neighbors(side="left"), BadRequest, "ARGUMENT_INVALID", "side"),
    "fold_norm": (lambda run: run.feature(SAE, 0).logit_lens(fold_norm=2), BadRequest, "ARGUMENT_INVALID", "fold_norm"),
    "longest": (
        lambda run: run.feature(SAE, 0).logit_lens(longest_unembedding="x"),
        BadRequest,
        "ARGUMENT_INVALID",
        "longest_unembedding",
    ),
    "text": (lambda run: run.feature(SAE, 0).ablate_text(""), BadRequest, "ARGUMENT_INVALID", "text"),
    "bytes": (lambda run: run.feature(SAE, 0).ablate_direction(b"a b"), BadRequest, "ARGUMENT_INVALID", "text"),
    "position": (
        lambda run: run.feature(SAE, 0).ablate_text("a b", position=-1),
        BadRequest,
        "ARGUMENT_INVALID",
        "position",
    ),
    "ablation": (
        lambda run: run.feature(SAE, 0).ablate_text("a b", ablation="mask"),
        BadRequest,
        "ARGUMENT_INVALID",
        "ablation",
    ),
    "pairs": (lambda run: run.feature(SAE, 0).ablate_text("a b", pairs="all"), BadRequest, "ARGUMENT_INVALID", "pairs"),
    "features": (lambda run: run.features(SAE).logit_lens([0, D_SAE]), BadRequest, "FEATURE_OUT_OF_RANGE", "features"),
    "no features": (lambda run: run.features(SAE).sample([]), BadRequest, "ARGUMENT_INVALID", "features"),
    "index": (lambda run: run.features(SAE)[D_SAE], BadRequest, "FEATURE_OUT_OF_RANGE", "feature"),
    "method": (lambda run: run.features(SAE).sample(1, "all"), BadRequest, "ARGUMENT_INVALID", "method"),
    "density": (lambda run: run.features(SAE).search(density=0.5), BadRequest, "ARGUMENT_INVALID", "density"),
    "bound": (lambda run: run.features(SAE).search(maximum=("a", 1)), BadRequest, "ARGUMENT_INVALID", "maximum"),
    "order": (lambda run: run.features(SAE).search(order="lift"), BadRequest, "ARGUMENT_INVALID", "order"),
    "order of active": (lambda run: run.features(SAE).active(order="density"), BadRequest, "ARGUMENT_INVALID", "order"),
    "token": (lambda run: run.features(SAE).by_token(-1), BadRequest, "ARGUMENT_INVALID", "token"),
    "vector": (lambda run: run.features(SAE).by_direction([0.0, 0.0]), BadRequest, "ARGUMENT_INVALID", "vector"),
    "vector of text": (lambda run: run.features(SAE).by_direction("ab"), BadRequest, "ARGUMENT_INVALID", "vector"),
    "infinite vector": (
        lambda run: run.features(SAE).by_direction([float("inf")]),
        BadRequest,
        "ARGUMENT_INVALID",
        "vector",
    ),
    "exclude": (lambda run: run.norms(exclude="padding"), BadRequest, "ARGUMENT_INVALID", "exclude"),
    "by": (lambda run: run.norms(by="head"), BadRequest, "ARGUMENT_INVALID", "by"),
    "quantity": (lambda run: run.norms(quantity="linf"), BadRequest, "ARGUMENT_INVALID", "quantity"),
    "edges": (lambda run: run.norms(histogram=[0, "ten"]), BadRequest, "ARGUMENT_INVALID", "histogram"),
    "no histogram": (lambda run: run.norms().plot_histogram(), BadRequest, "ARGUMENT_INVALID", "histogram"),
    "no plot": (lambda run: run.norms(by="document").plot(), BadRequest, "ARGUMENT_INVALID", "by"),
    "quantiles": (lambda run: run.norms(quantiles=["median"]), BadRequest, "ARGUMENT_INVALID", "quantiles"),
    "layers": (lambda run: run.fit_growth(layers=(1, "x")), BadRequest, "ARGUMENT_INVALID", "layers"),
    "sequences": (lambda run: run.tokens([1, 2]), BadRequest, "ARGUMENT_INVALID", "sequences"),
    "step": (lambda run: run.tokens(range(0, 9, 2)), BadRequest, "ARGUMENT_INVALID", "sequences"),
    "negative start": (lambda run: run.tokens(slice(-2, None)), BadRequest, "ARGUMENT_INVALID", "sequences"),
    "site": (lambda run: run.activations(3), BadRequest, "ARGUMENT_INVALID", "sites"),
    "surrogates": (lambda run: run.activations("\ud800"), BadRequest, "ARGUMENT_INVALID", "sites"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_sent_is_refused_here(case: str, direct: Lab) -> None:
    ask, kind, reason, field = REFUSED[case]
    with pytest.raises(kind) as caught:
        ask(direct.run("planted"))
    error = caught.value
    assert isinstance(error, actstore.ActstoreError)
    assert (error.reason, error.field) == (reason, field)
    assert error.value
    assert error.allowed


def test_numpy_integers_are_numbers(direct: Lab) -> None:
    assert direct.run("planted").feature(SAE, np.int64(SILENT)).index == SILENT


LIVE: dict[str, Callable[[Lab], object]] = {
    "capture": lambda lab: lab.capture("planted-model", dataset="text"),
    "wait": lambda lab: lab.attach("planted").wait(),
    "cancel": lambda lab: lab.attach("planted").cancel(),
    "logit_lens": lambda lab: lab.run("planted").feature(SAE, 0).logit_lens(),
    "neighbors": lambda lab: lab.run("planted").feature(SAE, 0).neighbors(),
    "ablate_text": lambda lab: lab.run("planted").feature(SAE, 0).ablate_text("a b"),
    "ablate_direction": lambda lab: lab.run("planted").feature(SAE, 0).ablate_direction("a b"),
    "encode": lambda lab: lab.run("planted").features(SAE).encode_text("a b"),
    "by_text": lambda lab: lab.run("planted").features(SAE).by_text("a b"),
    "by_direction": lambda lab: lab.run("planted").features(SAE).by_direction([1.0] * 8),
    "check": lambda lab: lab.run("planted").features(SAE).check(),
    "patch": lambda lab: lab.patch("planted-model", clean="a", corrupt="b", answers=(" c", " d")),
}


@pytest.mark.parametrize("call", LIVE)
def test_live_calls_on_a_bucket_name_the_next_step(call: str, direct: Lab) -> None:
    with pytest.raises(BadRequest, match="actstore up") as caught:
        LIVE[call](direct)
    assert caught.value.reason == "NEEDS_SERVICE"
    assert (caught.value.field, caught.value.value) == ("address", direct.address)
