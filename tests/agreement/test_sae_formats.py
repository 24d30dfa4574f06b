"""Formats that no package on PyPI reads, against what their authors' code computes, written out in NumPy.

Gemma Scope: Lieberum et al. 2024, section 2 (JumpReLU; nothing is subtracted from the input). OpenAI: the module
`model.py` of openai/sparse_autoencoder. Llama Scope: `sae.py` of OpenMOSS's Language-Model-SAEs at the time of the
release, whose encoder masks by the pre-activation times the decoder's norm and whose trainer scales rows by
sqrt(d) / norm on either side.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actstore_storage.format.sites import Site
from actstore_worker.sae.formats.loading import load_sae
from tests.made_models.sae_formats import (
    D_SAE,
    K,
    Weights,
    save_gemma_scope,
    save_gemma_scope_2,
    save_llama_scope,
    save_llama_scope_r1,
    save_openai,
    weights,
)
from tests.made_models.small_models import D_MODEL

Rows = NDArray[np.float64]


def rows(width: int = D_MODEL) -> Rows:
    """A mean and a scale that a normalisation would change."""
    return 2 * np.random.default_rng(7).standard_normal((50, width)) + 3


def exact(found: Weights) -> dict[str, Rows]:
    return {key: value.astype(np.float64) for key, value in found.items()}


def jumprelu(x: Rows, w: dict[str, Rows]) -> Rows:
    before = x @ w["W_enc"] + w["b_enc"]
    return np.maximum(before, 0) * (before > w["threshold"])


def check(path: Path, x: Rows, features: Rows, decoded: Rows) -> None:
    sae = load_sae(path, "small")
    assert 0 < (features != 0).mean() < 0.9
    given = torch.from_numpy(x.astype(np.float32))
    found = sae.encode(given)
    np.testing.assert_array_equal(found.numpy() != 0, features != 0)
    np.testing.assert_allclose(found.numpy(), features, atol=2e-5)
    np.testing.assert_allclose(sae.decode(found, given).numpy(), decoded, atol=1e-4)


@pytest.mark.parametrize(
    ("repository", "site", "model"),
    [
        ("gemma-scope-2b-pt-res", Site(12, "resid_post"), "gemma-2-2b"),
        ("gemma-scope-9b-it-mlp", Site(12, "mlp_out"), "gemma-2-9b-it"),
        ("gemma-scope-2b-pt-att", Site(12, "z"), "gemma-2-2b"),
    ],
)
def test_gemma_scope(repository: str, site: Site, model: str, tmp_path: Path) -> None:
    found = weights(24, 24)
    folder = save_gemma_scope(tmp_path / repository / "layer_12/width_16k/average_l0_82", found)
    w, x = exact(found), rows(24)
    features = jumprelu(x, w)
    check(folder, x, features, features @ w["W_dec"] + w["b_dec"])
    sae = load_sae(folder, "small")
    assert (sae.format, sae.site, sae.output_site, sae.model) == ("gemma_scope", site, site, model)
    assert (sae.claims, sae.architecture, sae.d_in, sae.d_sae) == ({"l0": 82.0}, "jumprelu", 24, D_SAE)


def test_gemma_scope_2(tmp_path: Path) -> None:
    found = weights()
    folder = save_gemma_scope_2(tmp_path / "layer_9_width_16k_l0_small", found, "model.layers.9.output")
    w, x = exact(found), rows()
    features = jumprelu(x, w)
    check(folder, x, features, features @ w["W_dec"] + w["b_dec"])
    sae = load_sae(folder, "small")
    assert (sae.format, sae.site, sae.model) == ("gemma_scope_2", Site(9, "resid_post"), "gemma-v3-270m-pt")
    folder = save_gemma_scope_2(tmp_path / "attn", found, "model.layers.9.self_attn.o_proj.input")
    assert load_sae(folder, "small").site == Site(9, "z")


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2_transcoders(affine: bool, tmp_path: Path) -> None:
    found = weights(D_MODEL, 24)
    point_in, point_out = (f"model.layers.9.{place}_feedforward_layernorm.output" for place in ("pre", "post"))
    folder = save_gemma_scope_2(tmp_path / "transcoder", found, point_in, point_out, affine)
    w, x = exact(found), rows()
    features = jumprelu(x, w)
    skipped = x @ w["W_skip"] if affine else 0
    check(folder, x, features, features @ w["W_dec"] + w["b_dec"] + skipped)
    sae = load_sae(folder, "small")
    assert (sae.site, sae.output_site, sae.d_out) == (Site(9, "mlp_input"), Site(9, "mlp_out"), 24)
    assert sae.is_transcoder


def openai(x: Rows, w: dict[str, Rows], k: int | None) -> tuple[Rows, Rows]:
    """`LN` and `TopK` of their model.py: torch's std is the unbiased one, and eps goes to it, not to the variance."""
    mean, deviation = 0.0, 1.0
    if k is not None:
        mean, deviation = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
        x = (x - mean) / (deviation + 1e-5)
    before = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    features = np.maximum(before, 0)
    if k is not None:
        features *= before >= np.sort(before, axis=1)[:, [-k]]
    return features, (features @ w["W_dec"] + w["b_dec"]) * deviation + mean


@pytest.mark.parametrize("k", [K, None])
@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("resid_post_mlp_v5_32k", "resid_post"),
        ("resid_delta_mlp_v4", "mlp_out"),
        ("resid_post_attn_v5_128k", "resid_mid"),
    ],
)
def test_openai(location: str, kind: str, k: int | None, tmp_path: Path) -> None:
    found = weights()
    path = save_openai(tmp_path / location / "autoencoders/7.pt", found, k)
    check(path, rows(), *openai(rows(), exact(found), k))
    sae = load_sae(path, "small")
    assert (sae.format, sae.site, sae.model) == ("openai", Site(7, kind), "gpt2")
    assert load_sae(path.parent, "small").sha256 == sae.sha256  # the only one of its folder


def llama_scope(x: Rows, w: dict[str, Rows], norms: dict[str, float], by_norm: bool) -> tuple[Rows, Rows]:
    scale_in, scale_out = (w[key].shape[axis] ** 0.5 / norms[side] for key, axis, side in
                           (("W_enc", 0, "in"), ("W_dec", 1, "out")))  # fmt: skip
    before = (x * scale_in) @ w["W_enc"] + w["b_enc"]
    scores = before * np.linalg.norm(w["W_dec"], axis=1) if by_norm else before
    features = before * (scores > w["threshold"])
    return features, (features @ w["W_dec"] + w["b_dec"]) / scale_out


@pytest.mark.parametrize("by_norm", [True, False])
def test_llama_scope(by_norm: bool, tmp_path: Path) -> None:
    found = weights() | {"threshold": np.full(D_SAE, 0.25, np.float32)}
    folder = save_llama_scope(tmp_path / "Llama3_1-8B-Base-L1R-8x", found, sparsity_include_decoder_norm=by_norm)
    check(folder, rows(), *llama_scope(rows(), exact(found), {"in": 6.3125, "out": 6.3125}, by_norm))
    sae = load_sae(folder, "small")
    assert (sae.format, sae.site, sae.model) == ("llama_scope", Site(1, "resid_post"), "Llama-3.1-8B")


def test_llama_scope_with_two_scales(tmp_path: Path) -> None:
    """Transcoders are scaled by one norm going in and by another coming out."""
    found = weights(D_MODEL, 24) | {"threshold": np.full(D_SAE, 0.25, np.float32)}
    norms = {"in": 4.0, "out": 0.5}
    places = {"hook_point_in": "blocks.1.mlp.hook_in", "hook_point_out": "blocks.1.hook_mlp_out"}
    folder = save_llama_scope(tmp_path / "transcoder", found, dataset_average_activation_norm=norms, **places)
    check(folder, rows(), *llama_scope(rows(), exact(found), norms, True))


def test_llama_scope_with_logarithms_of_thresholds(tmp_path: Path) -> None:
    found = weights()
    w, x = exact(found), rows()
    features = jumprelu(x, w)
    folder = save_llama_scope_r1(tmp_path / "L1R", found)
    check(folder, x, features, features @ w["W_dec"] + w["b_dec"])
    assert load_sae(folder, "small").format == "llama_scope_r1"
