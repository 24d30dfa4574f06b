"""Runs whose SAEs read heads and the MLP's input, not in SAELens's format alone, against encoding what was stored."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from actstore_storage.bucket import Bucket
from actstore_storage.format.keys import features_product
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.sae.formats.loading import load_sae
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.sae_formats import save_gemma_scope, save_gemma_scope_2, weights
from tests.made_models.small_models import SAVERS, save_sae

HEADS = "google/gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_9"
POINTS = [f"model.layers.2.{place}_feedforward_layernorm.output" for place in ("pre", "post")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Gemma 2's heads are wider together than d_model, and it norms what its MLP reads and gives."""
    models = tmp_path / "models"
    SAVERS["gemma2"](models / "gemma2")
    save_gemma_scope(models / HEADS, weights(24, 24))
    save_gemma_scope_2(models / "transcoder", weights(), *POINTS, affine=True)
    one = {"model_name": "m", "hook_name": "blocks.0.attn.hook_z", "hook_head_index": 2}
    save_sae(models / "one-head", "topk", d_in=6, metadata=one)
    (tmp_path / "data").mkdir()
    texts = [json.dumps({"text": "The quick brown fox. "[:length]}) for length in (20, 7, 13)]
    (tmp_path / "data/text.jsonl").write_text("\n".join(texts))
    return tmp_path


def test_features_are_those_of_the_rows_at_the_sae_s_site(folder: Path, local_bucket: Bucket) -> None:
    catalog = ModelCatalog((folder / "models",))
    sites = ("z.1", "mlp_input.2", "z.0.2")
    request = capture_request(
        "gemma2", "text.jsonl", run="run", dense_sites=sites, saes=(HEADS, "transcoder", "one-head")
    )
    plan = plan_capture(request, catalog, PlanSettings(DatasetPlaces((folder / "data",))))
    snapshot = capture_run(plan, local_bucket, CaptureWorker(local_bucket, torch.device("cpu")))
    names = [sae.name for sae in snapshot.record.specification.saes]
    assert names == [HEADS, "transcoder", "one-head"]
    for name, site in zip(names, sites, strict=True):
        sae = load_sae(catalog.find_sae(name), name)
        assert str(sae.site) == site
        batches = list(read_activations(snapshot, site))
        rows = np.concatenate([dense_matrix(batch["activation"], "float32", sae.d_in) for batch in batches])
        expected, found = sae.encode(torch.from_numpy(rows)).numpy(), np.zeros((len(rows), sae.d_sae), np.float32)
        (commit,) = snapshot.commits
        table = pq.read_table(local_bucket.open(commit.objects[features_product(name)].key))
        found[table["row"].to_numpy(), table["feature"].to_numpy()] = table["activation"].to_numpy()
        assert (expected != 0).any()
        np.testing.assert_allclose(found, expected, atol=1e-5)
