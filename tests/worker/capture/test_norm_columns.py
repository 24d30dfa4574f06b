"""What a capture stores of norms, and the profiles read from it, beside NumPy over the activations stored with them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.norm_columns import columns_beside
from actstore_storage.format.products import NORMS
from actstore_storage.norms.profile import ProfileQuestion, norm_histogram, norm_profile
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.registry.models import ModelRecord, register_model
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.tokens import shard_tokens
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.shards.norms import l2_and_centred, products
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.small_models import BERT, SAVERS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for name, save in {**SAVERS, **BERT}.items():
        save(folder / "models" / name)
    (folder / "data" / "text").mkdir(parents=True)
    for number in range(9):
        (folder / "data" / "text" / f"{number}.txt").write_text("The quick brown fox. "[: 3 + number] * (1 + number))
    return folder


def captured(folder: Path, bucket: Bucket, model: str, **options: object) -> tuple[Plan, Snapshot]:
    request = capture_request(model, "text", run="run", sequences_per_shard=4, **options)
    settings = PlanSettings(DatasetPlaces((folder / "data",)))
    plan = plan_capture(request, ModelCatalog((folder / "models",)), settings)
    return plan, capture_run(plan, bucket, CaptureWorker(bucket, CPU))


def vectors(snapshot: Snapshot, site: str) -> NDArray[np.float64]:
    """[token, d_model], as stored."""
    batches = list(read_activations(snapshot, site))
    dtype = batches[0].schema.field("activation").metadata[b"dtype"].decode()
    width = snapshot.record.d_model
    return np.concatenate([dense_matrix(batch["activation"], dtype, width) for batch in batches]).astype(np.float64)


def norms_table(snapshot: Snapshot) -> pa.Table:
    return pa.concat_tables(
        [pq.read_table(snapshot.bucket.open(commit.objects[NORMS].key)) for commit in snapshot.commits]
    )


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """No number where one is 0, as an embedding of padding is."""
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def expected_columns(plan: Plan, at: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """By hand, from which sites there are."""
    post_ln, parallel = "normalized_resid_post" in plan.model.kinds, "resid_mid" not in plan.model.kinds
    found = {site: np.linalg.norm(x, axis=1) for site, x in at.items()}
    found |= {f"centred_l2.{site}": np.linalg.norm(x - x.mean(1, keepdims=True), axis=1) for site, x in at.items()}
    for layer in range(plan.record.layer_count):
        before = at[f"resid_pre.{layer}"]
        after = at[f"normalized_resid_post.{layer}" if post_ln else f"resid_post.{layer}"]
        found[f"cosine_to_next.resid_pre.{layer}"] = cosine(before, after)
        found[f"cosine_to_stream.attn_out.{layer}"] = cosine(before, at[f"attn_out.{layer}"])
        if not post_ln:
            middle = before if parallel else at[f"resid_mid.{layer}"]
            found[f"cosine_to_stream.mlp_out.{layer}"] = cosine(middle, at[f"mlp_out.{layer}"])
    return found


@pytest.mark.parametrize(("family", "packing"), [*((name, False) for name in (*SAVERS, *BERT)), ("gpt2", True)])
def test_columns_are_those_of_the_stored_vectors(
    family: str, packing: bool, folder: Path, local_bucket: Bucket
) -> None:
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    beside = {"neox_parallel": (), "bert": ("resid_mid", "normalized_resid_post")}.get(family, ("resid_mid",))
    plan, snapshot = captured(folder, local_bucket, family, dense_sites=kinds + beside, packing=packing)
    at = {site: vectors(snapshot, site) for site in plan.record.specification.norm_sites}
    expected, found = expected_columns(plan, at), norms_table(snapshot)
    assert set(found.column_names) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].to_numpy(), values, rtol=2e-5, atol=2e-6, err_msg=name)


def test_more_rows_than_a_cache_holds_are_as_they_are_alone() -> None:
    """Several chunks of vectors, the last one short, beside float64 and beside bfloat16's own path."""
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(3, 701, 160, generator=generator) * scale for scale in (1, 5, 0.1)]
    for dtype in (torch.float32, torch.bfloat16):
        given = [one.to(dtype) for one in vectors]
        sums, dots = products(given, [0, 2], [(0, 0), (1, 2), (2, 0)])
        wide = [one.double() for one in given]
        torch.testing.assert_close(sums.double(), torch.stack([wide[0].sum(-1), wide[2].sum(-1)]), rtol=0, atol=1e-4)
        expected = torch.stack([(wide[one] * wide[other]).sum(-1) for one, other in ((0, 0), (1, 2), (2, 0))])
        torch.testing.assert_close(dots.double(), expected, rtol=1e-5, atol=1e-4)


def test_pairs_are_stored_where_both_norms_are(folder: Path, local_bucket: Bucket) -> None:
    _, snapshot = captured(folder, local_bucket, "gpt2", norm_sites=("resid_pre.1", "mlp_out.1", "resid_post.1"))
    beside = ["centred_l2.resid_pre.1", "centred_l2.mlp_out.1", "centred_l2.resid_post.1"]
    sites = ["resid_pre.1", "mlp_out.1", "resid_post.1"]
    assert norms_table(snapshot).column_names == [*sites, *beside, "cosine_to_next.resid_pre.1"]


def test_a_mean_that_is_most_of_a_vector_leaves_what_float32_has() -> None:
    rows = torch.randn(50, 512, generator=torch.Generator().manual_seed(0)) + 30
    wide = rows.double()
    sums, squares = products([rows[None]], [0], [(0, 0)])
    _, centred = l2_and_centred(squares, sums, rows.shape[-1])
    expected = torch.linalg.vector_norm(wide - wide.mean(1, keepdim=True), dim=1)
    # Of 512 squares, in whatever order a processor adds them, sqrt(512) roundings of half an eps; 900 times that of
    # what the mean leaves of them, and half of it in the root.
    rtol = 512**0.5 * torch.finfo(torch.float32).eps / 2 * 900 / 2
    np.testing.assert_allclose(centred[0, 0].double(), expected, rtol=rtol)
    assert not columns_beside((), ("resid_pre",))


@pytest.fixture(scope="module")
def stored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A run with every site's vectors, and with sinks among its tokens."""
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    sites = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    plan, snapshot = captured(folder, bucket, "gpt2", dense_sites=sites, sink_ratio=1.5)
    model, texts = plan.model, plan.model.texts.alone
    record = ModelRecord(model.name, "", "a" * 64, model.tokenizer_sha256, "gpt2", 3, model.d_model, 1, len(texts), 64)
    register_model(bucket, record, texts)
    return snapshot


def slow_values(snapshot: Snapshot, quantity: str, site: str) -> NDArray[np.float64]:
    """Of every token, from the stored vectors."""
    x, layer = vectors(snapshot, site), site.rpartition(".")[2]
    if quantity in ("l2", "rms"):
        return np.linalg.norm(x, axis=1) if quantity == "l2" else np.sqrt((x**2).mean(1))
    if quantity in ("centred_l2", "standard_deviation"):
        return x.std(1) * (np.sqrt(x.shape[1]) if quantity == "centred_l2" else 1)
    if quantity == "cosine_to_next":
        return cosine(x, vectors(snapshot, f"resid_post.{layer}"))
    stream = vectors(snapshot, f"{'resid_mid' if site.startswith('mlp') else 'resid_pre'}.{layer}")
    before, after = np.linalg.norm(stream, axis=1), np.linalg.norm(stream + x, axis=1)
    return {
        "cosine_to_stream": cosine(stream, x),
        "share_of_stream": np.linalg.norm(x, axis=1) / before,
        "relative_increase": (after - before) / before,
    }[quantity]


def tokens_of(snapshot: Snapshot) -> dict[str, NDArray[np.int64]]:
    table = pa.concat_tables([shard_tokens(snapshot.bucket, commit) for commit in snapshot.commits])
    return {name: table[name].to_numpy() for name in table.column_names}


def token_class(flags: NDArray[np.int64]) -> NDArray[np.str_]:
    return np.select([flags & 1 > 0, flags & 2 > 0, flags & 4 > 0], ["bos", "special", "sink"], "text")


QUANTITY_SITES = {
    "l2": ("resid_mid.1", "attn_out.0"),
    "rms": ("resid_post.2", "mlp_out.1"),
    "standard_deviation": ("resid_pre.0", "resid_post.1"),
    "centred_l2": ("resid_pre.2",),
    "cosine_to_next": ("resid_pre.0", "resid_pre.2"),
    "cosine_to_stream": ("attn_out.1", "mlp_out.1"),
    "share_of_stream": ("attn_out.1", "mlp_out.1"),
    "relative_increase": ("attn_out.2", "mlp_out.0"),
}
EXCLUSIONS = [
    (frozenset({"bos"}), False),
    (frozenset({"bos", "sink"}), False),
    (frozenset(), True),
    (frozenset(), False),
]


def told(quantity: str) -> set[str]:
    """What rows of it tell: the triangle's bound stands beside a sublayer's increase."""
    return {quantity, "share_of_stream"} if quantity == "relative_increase" else {quantity}


@pytest.mark.parametrize("by", ["layer", "token_class", "position", "document"])
@pytest.mark.parametrize("quantity", QUANTITY_SITES)
def test_profiles_are_numpy_s_over_the_stored_vectors(quantity: str, by: str, stored: Snapshot) -> None:
    tokens = tokens_of(stored)
    classes = token_class(tokens["flags"])
    slow = {
        (name, site): slow_values(stored, name, site) for site in QUANTITY_SITES[quantity] for name in told(quantity)
    }
    labels = {"layer": np.zeros(len(classes)), "token_class": classes}.get(by, tokens.get(by, classes))
    for exclude, position_0 in EXCLUSIONS:
        question = ProfileQuestion(QUANTITY_SITES[quantity], quantity, by, (0.1, 0.5), KeptTokens(exclude, position_0))
        rows = norm_profile(stored, question).to_pylist()
        kept = ~np.isin(classes, sorted(exclude)) & ((tokens["position"] > 0) | (not position_0))
        assert len(rows) == len(QUANTITY_SITES[quantity]) * len(np.unique(labels[kept]))
        for row in rows:
            site = f"{row['site']}.{row['layer']}"
            own = kept if by == "layer" else kept & (labels == row[by])
            values = slow[quantity, site][own]
            assert row["tokens"] == len(values)
            expected = [values.mean(), values.std(), values.min(), values.max(), *np.quantile(values, (0.1, 0.5))]
            found = [row[name] for name in ("mean", "standard_deviation", "minimum", "maximum", "q0.1", "q0.5")]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)
            if quantity.startswith("cosine") or quantity == "relative_increase":
                assert row["geometric_mean"] is None
            else:
                assert row["geometric_mean"] == pytest.approx(np.exp(np.log(values).mean()), rel=1e-4)
            if quantity == "relative_increase":
                share = slow["share_of_stream", site][own]
                assert row["bound"] == pytest.approx(share.mean(), rel=1e-4)
                assert abs(row["mean"]) <= row["bound"]
            else:
                assert "bound" not in row


@pytest.mark.parametrize("quantity", QUANTITY_SITES)
def test_single_tokens_have_numpy_s_values_of_their_vectors(quantity: str, stored: Snapshot) -> None:
    tokens, sites = tokens_of(stored), QUANTITY_SITES[quantity]
    classes = token_class(tokens["flags"])
    for exclude, position_0 in EXCLUSIONS:
        for first, count in ((0, None), (3, 3), (8, 1)):
            question = ProfileQuestion(
                sites, quantity, "token", (), KeptTokens(exclude, position_0), sequences=(first, count)
            )
            found = norm_profile(stored, question)
            kept = ~np.isin(classes, sorted(exclude)) & ((tokens["position"] > 0) | (not position_0))
            kept &= (tokens["sequence"] >= first) & (tokens["sequence"] < first + (count or 10**6))
            assert found["token_class"].to_pylist() == classes[kept].tolist()
            for name in ("sequence", "position", "document", "token"):
                np.testing.assert_array_equal(found[name].to_numpy(), tokens[name][kept])
            assert found.column_names[6:] == sorted(sites, key=stored_order)
            for site in sites:
                expected = slow_values(stored, quantity, site)[kept]
                np.testing.assert_allclose(found[site].to_numpy(), expected, rtol=1e-4, atol=2e-6)


def stored_order(site: str) -> tuple[int, int]:
    kind, _, layer = site.rpartition(".")
    return ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post").index(kind), int(layer)


@pytest.mark.parametrize("quantity", ["l2", "standard_deviation"])
def test_a_kind_s_layers_together(quantity: str, stored: Snapshot) -> None:
    question = ProfileQuestion(("resid_mid", "mlp_out.1"), quantity, "site", (0.5,))
    rows = norm_profile(stored, question).to_pylist()
    kept = tokens_of(stored)["flags"] & 1 == 0
    expected = {
        "resid_mid": np.concatenate([slow_values(stored, quantity, f"resid_mid.{layer}")[kept] for layer in range(3)]),
        "mlp_out": slow_values(stored, quantity, "mlp_out.1")[kept],
    }
    assert [row["site"] for row in rows] == list(expected)
    for row in rows:
        values = expected[row["site"]]
        found = [row["tokens"], row["mean"], row["standard_deviation"], row["q0.5"]]
        np.testing.assert_allclose(found, [len(values), values.mean(), values.std(), np.median(values)], rtol=1e-4)


def test_statistics_alone_tell_all_but_quantiles(stored: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str) -> None:
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(stored.bucket, "open", refuse)
    for quantity, sites in QUANTITY_SITES.items():
        for by in ("layer", "site", "token_class"):
            assert norm_profile(stored, ProfileQuestion(sites, quantity, by, ())).num_rows


@pytest.mark.parametrize("quantity", ["l2", "relative_increase"])
@pytest.mark.parametrize("edges", [(), (-1.0, 0.0, 0.5, 3.0)])
def test_histograms(quantity: str, edges: tuple[float, ...], stored: Snapshot) -> None:
    site = "mlp_out.1"
    table = norm_histogram(stored, ProfileQuestion((site,), quantity), bins=0 if edges else 7, edges=edges)
    values = slow_values(stored, quantity, site)[tokens_of(stored)["flags"] & 1 == 0]
    bounds = [*table["low"].to_pylist(), table["high"].to_pylist()[-1]]
    if not edges:
        ends = values.min(), values.max()
        expected = np.geomspace(*ends, 8) if quantity == "l2" else np.linspace(*ends, 8)
        np.testing.assert_allclose(bounds, expected, rtol=1e-4, atol=1e-6)
        assert sum(table["count"].to_pylist()) == len(values)
    else:
        assert tuple(bounds) == edges
    inner = values[(np.abs(values[:, None] - np.array(bounds)[None, 1:-1]) > 1e-6).all(1)]  # rounding moves others
    wide = [bounds[0] - 1e-6, *bounds[1:-1], bounds[-1] + 1e-6]
    counts = np.array(table["count"].to_pylist()) - np.histogram(inner, wide)[0]
    assert (counts >= 0).all()
    assert counts.sum() <= len(values) - len(inner)
