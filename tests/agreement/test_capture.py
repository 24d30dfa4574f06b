"""What capture stores equals what two independent readers of the same model see: plain hooks, and TransformerLens."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from actstore_storage.bucket import Bucket
from actstore_storage.format.keys import object_key
from actstore_storage.format.moments import Moments
from actstore_storage.format.products import NORMS
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.shards.shard import ShardCapture
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.loading import load_model
from tests.capture_requests import capture_request
from tests.capturing import capture_shard
from tests.made_models.small_models import BUNDLED_MODELS, SAVERS, save_sae

TEXT = "def greet(name):\n    return f'hello {name}'\n\n\nclass Café:\n    pass\n"
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
# Where each family keeps the modules whose outputs are attn_out and mlp_out, and whose input is resid_mid.
ATTENTION = {"gpt_neox": "attention", "gpt2": "attn", "llama": "self_attn"}
MIDDLE = {"gpt_neox": "post_attention_layernorm", "gpt2": "ln_2", "llama": "post_attention_layernorm"}
LAYERS = {"gpt_neox": "gpt_neox.layers", "gpt2": "transformer.h", "llama": "model.layers"}

Observed = dict[str, NDArray[np.float32]]


def save_bundled(folder: Path) -> Path:
    """The bundled model without its revisions."""
    return Path(shutil.copytree(BUNDLED_MODELS / "pystdlib", folder, ignore=shutil.ignore_patterns("revisions")))


# One of each wiring; test_families.py has every family.
WIRINGS = ("neox_parallel", "neox_sequential", "gpt2", "llama")
MODELS: dict[str, Callable[[Path], Path]] = {"bundled": save_bundled} | {name: SAVERS[name] for name in WIRINGS}


def capture(folder: Path, model: str, bucket: Bucket, **options: object) -> tuple[Plan, Snapshot]:
    """Documents of very unequal length in one batch, one of them cut into several sequences."""
    (folder / "text").mkdir(exist_ok=True)
    for name, text in {"long": TEXT * 3, "short": "x", "empty": "", "middle": TEXT[:20]}.items():
        (folder / "text" / f"{name}.txt").write_text(text)
    request = capture_request(model, "text", context_length=24, sequences_per_batch=4, sequences_per_shard=6, **options)
    plan = plan_capture(request, ModelCatalog((folder,)), PlanSettings(DatasetPlaces((folder,))))
    create_run(bucket, plan.record)
    loaded = load_model(plan.model_source, dtype=plan.record.specification.dtype, device=torch.device("cpu"))
    capturing = ShardCapture(loaded, plan.saes, plan.record)
    for shard in range(plan.record.shards_total):
        assert capture_shard(capturing, bucket, plan, shard, "a")
    return plan, open_run(bucket, plan.record.run)


def stored(snapshot: Snapshot, site: str) -> NDArray[np.float32]:
    asked = snapshot.record
    rows = [
        dense_matrix(batch["activation"], asked.specification.dtype, asked.d_model)
        for batch in read_activations(snapshot, site)
    ]
    return np.concatenate(rows)


def sequences_of(plan: Plan) -> list[torch.Tensor]:
    """One by one and without padding, as nobody would capture but everybody would check."""
    return [torch.from_numpy(one.tokens.astype(np.int64))[None] for one in plan.sequences.batches(1)]


def plain_hooks(folder: Path, plan: Plan, dtype: torch.dtype) -> Observed:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    family, seen = model.config.model_type, {}
    for index, layer in enumerate(model.get_submodule(LAYERS[family])):
        modules = {"attn_out": layer.get_submodule(ATTENTION[family]), "mlp_out": layer.mlp, "resid_post": layer}
        for kind, module in modules.items():
            module.register_forward_hook(
                lambda _m, _a, out, key=f"{kind}.{index}": seen.setdefault(key, []).append(out)
            )
        inputs = {"resid_mid": layer.get_submodule(MIDDLE[family]), "resid_pre": layer}
        for kind, module in inputs.items():
            module.register_forward_pre_hook(
                lambda _m, args, key=f"{kind}.{index}": seen.setdefault(key, []).append(args)
            )
    with torch.no_grad():
        for tokens in sequences_of(plan):
            model(tokens)
    return {site: joined(values) for site, values in seen.items()}


def joined(values: list[object]) -> NDArray[np.float32]:
    tensors = [value[0] if isinstance(value, tuple) else value for value in values]
    return torch.cat([tensor[0] for tensor in tensors]).float().numpy()


def transformer_lens(folder: Path, plan: Plan) -> Observed:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports deprecate each other
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
        caches = [bridge.run_with_cache(tokens)[1] for tokens in sequences_of(plan)]
    sites = plan.record.specification.dense_sites
    names = {site: f"blocks.{site.split('.')[1]}.hook_{site.split('.')[0]}" for site in sites}
    return {site: torch.cat([cache[name][0] for cache in caches]).numpy() for site, name in names.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_site_equals_plain_hooks_and_transformer_lens(name: str, tmp_path: Path, local_bucket: Bucket) -> None:
    folder = MODELS[name](tmp_path / name)
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    kinds += ["resid_mid"] if name in ("neox_sequential", "gpt2", "llama") else []
    plan, snapshot = capture(tmp_path, name, local_bucket, dense_sites=tuple(kinds))
    assert len(plan.record.specification.dense_sites) == len(kinds) * plan.record.layer_count
    hooked, lens = plain_hooks(folder, plan, torch.float32), transformer_lens(folder, plan)
    for site in plan.record.specification.dense_sites:
        np.testing.assert_allclose(stored(snapshot, site), hooked[site], atol=TOLERANCE["float32"], rtol=1e-4)
        np.testing.assert_allclose(stored(snapshot, site), lens[site], atol=TOLERANCE["float32"], rtol=1e-4)


@pytest.mark.parametrize("name", ["bundled", "gpt2", "llama"])
def test_half_precision_is_what_the_model_computed_in(name: str, tmp_path: Path, local_bucket: Bucket) -> None:
    folder = MODELS[name](tmp_path / name)
    plan, snapshot = capture(tmp_path, name, local_bucket, dense_sites=("resid_post",), dtype="bfloat16")
    hooked = plain_hooks(folder, plan, torch.bfloat16)
    for site in plan.record.specification.dense_sites:
        scale = np.abs(hooked[site]).max()
        np.testing.assert_allclose(stored(snapshot, site), hooked[site], atol=TOLERANCE["bfloat16"] * scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_norms_are_those_of_the_stored_rows(dtype: str, tmp_path: Path, local_bucket: Bucket) -> None:
    import pyarrow.parquet as pq

    MODELS["gpt2"](tmp_path / "gpt2")
    sites = ("resid_pre", "resid_mid", "resid_post")
    _, snapshot = capture(tmp_path, "gpt2", local_bucket, dense_sites=sites, norm_sites=sites, dtype=dtype)
    keys = [object_key(one.run, one.shard, one.attempt, NORMS) for one in snapshot.commits]
    for site in snapshot.record.specification.norm_sites:
        norms = np.concatenate([pq.read_table(local_bucket.open(key))[site].to_numpy() for key in keys])
        expected = np.linalg.norm(stored(snapshot, site).astype(np.float64), axis=1)
        np.testing.assert_allclose(norms, expected, rtol=1e-5)
        together = Moments()
        for commit in snapshot.commits:
            for moments in commit.norm_moments[site].values():
                together = together.merge(moments)
        assert together.count == len(expected)
        assert together.mean == pytest.approx(expected.mean())


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "bundled"])
def test_stored_features_equal_saelens(architecture: str, tmp_path: Path, local_bucket: Bucket) -> None:
    """The bundled SAE is wide enough for the fast way to the k largest; the small ones are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports deprecate each other
        from sae_lens import SAE

    if architecture == "bundled":
        save_bundled(tmp_path / "model")
        shutil.copytree(BUNDLED_MODELS / "pystdlib-resid_post.1", tmp_path / "sae")
    else:
        SAVERS["neox_parallel"](tmp_path / "model")
        save_sae(tmp_path / "sae", architecture)
    _, snapshot = capture(tmp_path, "model", local_bucket, dense_sites=("resid_post.1",), saes=("sae",))
    with torch.no_grad():
        rows = torch.from_numpy(stored(snapshot, "resid_post.1"))
        expected = SAE.load_from_disk(tmp_path / "sae").encode(rows).numpy()
    np.testing.assert_allclose(stored_features(snapshot, expected.shape), expected, atol=1e-5, rtol=1e-5)
    assert 0 < np.count_nonzero(expected) < expected.size


def stored_features(snapshot: Snapshot, shape: tuple[int, ...]) -> NDArray[np.float32]:
    import pyarrow.parquet as pq

    found, first = np.zeros(shape, np.float32), 0
    for commit in snapshot.commits:
        key = object_key(commit.run, commit.shard, commit.attempt, "features-sae")
        table = pq.read_table(snapshot.bucket.open(key))
        found[table["row"].to_numpy() + first, table["feature"].to_numpy()] = table["activation"].to_numpy()
        first += commit.tokens
    return found
