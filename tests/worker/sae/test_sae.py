"""Encoders against SAELens over every option that both have; refusals of those that actstore has not."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import describe_model
from actstore_worker.sae.fit import check_fit
from actstore_worker.sae.formats.loading import load_sae
from actstore_worker.sae.nonzeros import nonzero_features, top_by_groups, top_by_sorting
from actstore_worker.sae.parts import SaeParts, assemble
from actstore_worker.sae.sidecar import Sidecar
from tests.made_models.small_models import BUNDLED_MODELS, D_MODEL, save_neox, save_sae

ARCHITECTURES = ["standard", "topk", "jumprelu", "gated"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale"},
]


def rows(count: int = 50) -> torch.Tensor:
    return torch.randn(count, D_MODEL, generator=torch.Generator().manual_seed(7))


def saelens(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports deprecate each other
        from sae_lens import SAE
    return SAE.load_from_disk(folder)


def saelens_encode(folder: Path, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return saelens(folder).encode(x).numpy()


def assert_decodes_as_saelens(folder: Path) -> None:
    """Also each feature's part of it: all of them together are what the decoder's biases do not explain."""
    sae, x = load_sae(folder, "small"), rows() + 3  # a mean that a normalisation must bring back
    features = sae.encode(x)
    decoded = sae.decode(features, x)
    with torch.no_grad():
        np.testing.assert_allclose(decoded.numpy(), saelens(folder)(x).numpy(), atol=1e-4)
    parts = sum(sae.contribution(features[:, index], index, x) for index in range(sae.d_sae))
    alone = sae.decode(torch.zeros_like(features), x)
    np.testing.assert_allclose(parts.numpy(), (decoded - alone).numpy(), atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_equals_saelens(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    save_sae(tmp_path, architecture, **options)
    found = load_sae(tmp_path, "small").encode(rows()).numpy()
    np.testing.assert_allclose(found, saelens_encode(tmp_path, rows()), atol=1e-5)


def test_topk_rescaled_by_decoder_norms_equals_saelens(tmp_path: Path) -> None:
    save_sae(tmp_path, "topk", rescale_acts_by_decoder_norm=True)
    found = load_sae(tmp_path, "small").encode(rows()).numpy()
    np.testing.assert_allclose(found, saelens_encode(tmp_path, rows()), atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decode_equals_saelens(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    assert_decodes_as_saelens(save_sae(tmp_path, architecture, **options))


def test_decoder_norms_are_folded_once(tmp_path: Path) -> None:
    """Whose rows then have norm 1: what a feature writes is its activation times that."""
    assert_decodes_as_saelens(save_sae(tmp_path, "topk", rescale_acts_by_decoder_norm=True))
    sae, stored = load_sae(tmp_path, "small"), load_file(tmp_path / "sae_weights.safetensors")
    norms = stored["W_dec"].norm(dim=1)
    torch.testing.assert_close(sae.decoder, stored["W_dec"] / norms[:, None])
    torch.testing.assert_close(sae.encoder, stored["W_enc"].T * norms[:, None])


def test_directions_are_those_of_the_file(tmp_path: Path) -> None:
    sae, stored = load_sae(save_sae(tmp_path, "gated"), "small"), load_file(tmp_path / "sae_weights.safetensors")
    torch.testing.assert_close(sae.decoder, stored["W_dec"])
    torch.testing.assert_close(sae.encoder, stored["W_enc"].T)
    assert (sae.format, sae.output_site, sae.d_out) == ("sae_lens", sae.site, D_MODEL)


def test_claims_are_those_of_its_own_files(tmp_path: Path) -> None:
    bundled = load_sae(BUNDLED_MODELS / "pystdlib-resid_post.1", "bundled")
    assert bundled.claims == {"l0": 16.0, "fvu": pytest.approx(0.137, abs=1e-3), "dead_share": 10 / 1024}
    assert load_sae(save_sae(tmp_path, "standard"), "silent").claims == {}
    # As SAELens writes it: log10 of how often each feature fires, 1e-10 added first.
    frequencies = torch.tensor([0.5] * 16 + [0.25] * 16 + [0.0] * 32)
    save_file({"sparsity": (frequencies + 1e-10).log10()}, tmp_path / "sparsity.safetensors")
    claims = load_sae(tmp_path, "small").claims
    assert claims == {"l0": pytest.approx(12), "dead_share": 0.5}


def test_a_file_from_before_v6_says_the_same(tmp_path: Path) -> None:
    save_sae(tmp_path, "topk")
    old = {"d_in": D_MODEL, "d_sae": 64, "dtype": "float32", "hook_name": "blocks.2.hook_resid_pre"}
    old |= {
        "model_name": "m",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 8},
        "normalize_activations": False,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    sae = load_sae(tmp_path, "old")
    assert (sae.architecture, sae.site, sae.model) == ("topk", Site(2, "resid_pre"), "m")
    np.testing.assert_allclose(sae.encode(rows()).numpy(), saelens_encode(tmp_path, rows()), atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nonzeros_are_those_of_encode(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore_worker.sae.nonzeros.SLICE_BYTES_MAX", 4 * 512 * 7)  # slices of seven rows
    sae = load_sae(save_sae(tmp_path, architecture, d_sae=512), "small")
    dense = sae.encode(rows()).numpy()
    found = nonzero_features(sae, rows())
    again = np.zeros_like(dense)
    again[found.row, found.feature] = found.activation
    np.testing.assert_allclose(again, dense, atol=1e-6)
    assert (np.diff(found.row * 512 + found.feature) > 0).all()
    assert (found.row.dtype, found.feature.dtype, found.activation.dtype) == (np.int64, np.int32, np.float32)


@pytest.mark.parametrize(("d_sae", "k"), [(512, 16), (512, 1), (2048, 32), (1024, 32)])
def test_the_fast_way_to_the_largest_is_the_slow_one(d_sae: int, k: int) -> None:
    before = (
        torch.randn(200, d_sae, generator=torch.Generator().manual_seed(k)) - 1.5
    )  # some of the largest are negative
    fast, slow = top_by_groups(before, k), top_by_sorting(before, k)
    assert fast is not None
    np.testing.assert_array_equal(fast[0], slow[0])
    np.testing.assert_array_equal(fast[1], slow[1])


def test_the_fast_way_declines_where_it_is_not_certain() -> None:
    before = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    assert top_by_groups(before, 17) is None  # 32 groups are too few
    assert top_by_groups(before[:, :500].contiguous(), 4) is None
    with_nan = before.clone()
    with_nan[2, 3] = torch.nan
    assert top_by_groups(with_nan, 4) is None
    assert top_by_groups(torch.ones(4, 512), 4) is None  # all tie
    assert np.isnan(top_by_sorting(with_nan, 4)[1]).sum() == 1


def test_a_threshold_below_zero_makes_no_feature_negative(tmp_path: Path) -> None:
    weights = save_sae(tmp_path, "jumprelu") / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"threshold": -tensors["threshold"]}, weights)
    expected = saelens_encode(tmp_path, rows())
    sae = load_sae(tmp_path, "small")
    np.testing.assert_allclose(sae.encode(rows()).numpy(), expected, atol=1e-5)
    found, again = nonzero_features(sae, rows()), np.zeros_like(expected)
    again[found.row, found.feature] = found.activation
    np.testing.assert_allclose(again, expected, atol=1e-5)
    assert (found.activation > 0).all()


def test_no_number_in_gives_no_silence_out(tmp_path: Path) -> None:
    x = rows(3)
    x[1, 0] = torch.inf
    found = nonzero_features(load_sae(save_sae(tmp_path, "standard"), "small"), x)
    assert not np.isfinite(found.activation[found.row == 1]).all()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"architecture": "batchtopk"}, "architecture"),
        ({"activation_fn": "tanh-relu"}, "activation_fn"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
        ({"normalize_activations": True}, "normalize_activations"),
        ({"reshape_activations": "other"}, "reshape_activations"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"d_sae": 0}, "cfg.json"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input"),  # which Python takes for false
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input"),  # and this for true
        (
            {
                "metadata": {
                    "hook_name": "resid_post.1",
                    "model_from_pretrained_kwargs": {"center_writing_weights": True},
                }
            },
            "center_writing_weights",
        ),
    ],
)
def test_options_that_would_be_silently_wrong_are_refused(options: dict[str, Any], field: str, tmp_path: Path) -> None:
    save_sae(tmp_path, "standard")
    config = json.loads((tmp_path / "cfg.json").read_text()) | options
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(BadRequest) as refused:
        load_sae(tmp_path, "small")
    assert (refused.value.reason, refused.value.details["field"]) == ("SAE_UNSUPPORTED", field)


@pytest.mark.parametrize("k", [None, 0, 65, "8"])
def test_a_topk_needs_its_k(k: object, tmp_path: Path) -> None:
    save_sae(tmp_path, "topk", k=k)
    with pytest.raises(BadRequest, match=r"k is .*"):
        load_sae(tmp_path, "small")


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    weights = save_sae(tmp_path, "standard") / "sae_weights.safetensors"
    tensors = load_file(weights)
    for change, match in (
        ({"b_enc": torch.full((64,), torch.nan)}, "NaN"),
        ({"W_enc": torch.zeros(64, D_MODEL)}, "does not fit"),
        ({"W_skip": torch.zeros(2)}, "skip connection"),
        ({"scaling_factor": torch.full((64,), 2.0)}, "other tensors"),
    ):
        save_file(tensors | change, weights)
        with pytest.raises(BadRequest, match=match):
            load_sae(tmp_path, "small")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadRequest, match="cannot be read"):
        load_sae(tmp_path, "small")


def test_an_sae_must_fit_its_model(tmp_path: Path) -> None:
    save_neox(tmp_path / "neox")
    model = describe_model(ModelCatalog((tmp_path,)).find_model("neox"))
    check_fit(load_sae(save_sae(tmp_path / "right", "standard"), "right"), model)
    wide = load_sae(save_sae(tmp_path / "wide", "standard", d_in=8), "wide")
    with pytest.raises(BadRequest) as refused:
        check_fit(wide, model)
    assert refused.value.reason == "SAE_MISMATCH"
    assert refused.value.details == {"field": "d_in", "value": "8", "allowed": str(D_MODEL)}
    for site in ("blocks.3.hook_resid_post", "blocks.0.hook_resid_mid"):
        with pytest.raises(BadRequest, match=r"model 'neox' has resid_pre.0..2"):
            check_fit(load_sae(save_sae(tmp_path / "other", "standard", site=site), "other"), model)
    with pytest.raises(BadRequest) as refused:
        load_sae(save_sae(tmp_path / "other", "standard", site="blocks.0.attn.hook_pattern"), "other")
    assert refused.value.details["field"] == "hook_name"


def test_the_hash_is_of_configuration_and_weights(tmp_path: Path) -> None:
    first = load_sae(save_sae(tmp_path / "a", "standard"), "a").sha256
    assert load_sae(save_sae(tmp_path / "b", "standard"), "b").sha256 == first
    assert load_sae(save_sae(tmp_path / "c", "standard", seed=1), "c").sha256 != first
    assert load_sae(save_sae(tmp_path / "d", "standard", apply_b_dec_to_input=False), "d").sha256 != first


def test_two_scales_are_folded_into_every_matrix() -> None:
    """Rows times one factor going in, and what comes out over another, the skip connection's share of it as well."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 8), "W_dec": (8, 3), "b_enc": (8,), "b_dec": (3,), "W_skip": (4, 3)}
    w = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    places = {"site": Site(1, "mlp_input"), "output_site": Site(1, "mlp_out")}
    parts = SaeParts("standard", w, is_transcoder=True, scales=(3.0, 0.5), **places)
    sae = assemble(parts, Sidecar(), "small", "0" * 64, "none")
    x = torch.randn(20, 4, generator=generator)
    features = torch.relu(3 * x @ w["W_enc"] + w["b_enc"])
    torch.testing.assert_close(sae.encode(x), features)
    expected = (features @ w["W_dec"] + w["b_dec"] + 3 * x @ w["W_skip"]) / 0.5
    torch.testing.assert_close(sae.decode(features, x), expected, rtol=1e-5, atol=1e-5)
