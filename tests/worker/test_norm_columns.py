"""What a capture stores of norms, and the profiles read from it, beside NumPy over the activations stored with them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from actstore_storage.bucket import Bucket
from actstore_storage.norm_columns import columns_beside
from actstore_storage.products import NORMS
from actstore_storage.rows import dense_matrix, read_activations
from actstore_storage.snapshot import Snapshot
from actstore_worker.capture_worker import CaptureWorker
from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.dataset_files import DatasetPlaces
from actstore_worker.plan import Plan, PlanSettings, plan_capture
from actstore_worker.request import CaptureRequest
from tests.capturing import capture_run
from tests.small_models import BERT, SAVERS

FAMILIES = ("gpt2", "neox_parallel", "llama", "bert")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for name, save in {**SAVERS, **BERT}.items():
        if name in FAMILIES:
            save(folder / "models" / name)
    (folder / "data" / "text").mkdir(parents=True)
    for number in range(9):
        (folder / "data" / "text" / f"{number}.txt").write_text("The quick brown fox. "[: 3 + number] * (1 + number))
    return folder


def captured(folder: Path, bucket: Bucket, model: str, **options: object) -> tuple[Plan, Snapshot]:
    request = CaptureRequest(model, "text", run="run", sequences_per_shard=4, **options)
    settings = PlanSettings(DatasetPlaces((folder / "data",)))
    plan = plan_capture(request, ModelCatalogue((folder / "models",)), settings)
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


@pytest.mark.parametrize(("family", "packing"), [*((name, False) for name in FAMILIES), ("gpt2", True)])
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


def test_pairs_are_stored_where_both_norms_are(folder: Path, local_bucket: Bucket) -> None:
    _, snapshot = captured(folder, local_bucket, "gpt2", norm_sites=("resid_pre.1", "mlp_out.1", "resid_post.1"))
    beside = ["centred_l2.resid_pre.1", "centred_l2.mlp_out.1", "centred_l2.resid_post.1"]
    sites = ["resid_pre.1", "mlp_out.1", "resid_post.1"]
    assert norms_table(snapshot).column_names == [*sites, *beside, "cosine_to_next.resid_pre.1"]


def test_a_mean_that_is_most_of_a_vector_leaves_what_float32_has() -> None:
    from actstore_worker.norms import l2_and_centred

    rows = torch.randn(50, 512, generator=torch.Generator().manual_seed(0)) + 30
    wide = rows.double()
    _, centred = l2_and_centred(rows[None])
    expected = torch.linalg.vector_norm(wide - wide.mean(1, keepdim=True), dim=1)
    np.testing.assert_allclose(centred[0].double(), expected, rtol=2e-7 * 900)
    assert not columns_beside((), ("resid_pre",))
