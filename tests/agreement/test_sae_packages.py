"""Formats against the packages that save and read them: SAELens, dictionary_learning, sparsify.

SAELens reads the others' formats as well; it is no reference for them, as it turns sparsify's decoder the wrong way.
"""

import importlib
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actstore_storage.format.sites import Site
from actstore_worker.sae.formats.loading import load_sae
from tests.made_models.small_models import D_MODEL

D_SAE, K = 64, 6


def submodule(package: str, name: str) -> Any:
    """Without what the package's __init__ imports: nnsight, wandb, a trainer."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        bare = types.ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = bare
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{package}.{name}")


def saelens() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports deprecate each other
        return importlib.import_module("sae_lens.saes")


def rows() -> Tensor:
    return 2 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(7)) + 1


def randomise(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """Every weight and bias other than what it began with; thresholds above 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if "threshold" in name:
                parameter.abs_()
    return module


def check(path: Path, features: Tensor, decoded: Tensor) -> None:
    sae = load_sae(path, "small")
    found = sae.encode(rows())
    assert 0 < (features != 0).float().mean() < 0.9
    np.testing.assert_array_equal((found != 0).numpy(), (features != 0).numpy())
    torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(found, rows()), decoded, rtol=1e-4, atol=1e-4)


DICTIONARIES: dict[str, tuple[str, Callable[[Any], nn.Module]]] = {
    "AutoEncoder": ("dictionary", lambda kind: kind(D_MODEL, D_SAE)),
    "AutoEncoderNew": ("dictionary", lambda kind: kind(D_MODEL, D_SAE)),
    "GatedAutoEncoder": ("dictionary", lambda kind: kind(D_MODEL, D_SAE)),
    "JumpReluAutoEncoder": ("dictionary", lambda kind: kind(D_MODEL, D_SAE)),
    "AutoEncoderTopK": ("trainers.top_k", lambda kind: kind(D_MODEL, D_SAE, K)),
    "BatchTopKSAE": ("trainers.batch_top_k", lambda kind: kind(D_MODEL, D_SAE, K)),
    "MatryoshkaBatchTopKSAE": ("trainers.matryoshka_batch_top_k", lambda kind: kind(D_MODEL, D_SAE, K, [16, 16, 32])),
}


def save_dictionary(folder: Path, known: str, threshold: float = 0.4, **trainer: Any) -> tuple[Path, Any]:
    """As its training saves: the final state_dict beside the trainer's configuration. Also the class."""
    place, build = DICTIONARIES[known]
    kind = getattr(submodule("dictionary_learning", place), known)
    dictionary = randomise(build(kind))
    if known.endswith(("TopK", "TopKSAE")):
        dictionary.threshold.fill_(threshold)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dictionary.state_dict(), folder / "ae.pt")
    config = {"dict_class": known, "activation_dim": D_MODEL, "dict_size": D_SAE, "layer": 3, "k": K}
    config |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_3"} | trainer
    buffer = {"d_submodule": D_MODEL, "io": "out", "ctx_len": 128}
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": buffer}))
    return folder, kind


@pytest.mark.parametrize("known", DICTIONARIES)
def test_dictionary_learning(known: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, kind = save_dictionary(tmp_path, known)
    theirs = kind.from_pretrained(str(folder / "ae.pt"))
    with torch.no_grad():
        features = theirs.encode(rows())
        check(folder, features, theirs.decode(features))
    sae = load_sae(folder, "small")
    assert (sae.format, sae.site, sae.model) == ("dictionary_learning", Site(3, "resid_post"), "pythia-70m-deduped")


def test_a_checkpoint_of_dictionary_learning_lies_beside_its_configuration(tmp_path: Path) -> None:
    folder, _ = save_dictionary(tmp_path, "AutoEncoderTopK")
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints/ae_100.pt")
    sae = load_sae(folder / "checkpoints/ae_100.pt", "small")
    assert (sae.format, sae.d_sae) == ("dictionary_learning", D_SAE)


def save_sparsify(folder: Path, **options: Any) -> Any:
    package = submodule("sparsify", "sparse_coder")
    coder = randomise(package.SparseCoder(D_MODEL, package.SparseCoderConfig(k=K, **options)))
    coder.save_to_disk(folder)
    return coder


@pytest.mark.parametrize(
    "options",
    [{"num_latents": D_SAE}, {"expansion_factor": 4}, {"num_latents": D_SAE, "normalize_decoder": False}],
    ids=str,
)
def test_sparsify(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = save_sparsify(tmp_path / "layers.3", **options)
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    with torch.no_grad():
        values, indices, _ = theirs.encode(rows())
        features = torch.zeros(len(rows()), D_SAE).scatter_(1, indices, values)
        check(tmp_path / "layers.3", features, theirs.decode(values, indices))
    sae = load_sae(tmp_path / "layers.3", "small")
    assert (sae.format, sae.site, sae.model) == ("sparsify", Site(3, "resid_post"), "EleutherAI/pythia-160m")


@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_transcoders(skip: bool, tmp_path: Path) -> None:
    folder = tmp_path / "layers.3.mlp"
    theirs = save_sparsify(folder, num_latents=D_SAE, transcode=True, skip_connection=skip)
    with torch.no_grad():
        values, indices, _ = theirs.encode(rows())
        features = torch.zeros(len(rows()), D_SAE).scatter_(1, indices, values)
        check(folder, features, theirs(rows()).sae_out)
    sae = load_sae(folder, "small")
    assert (sae.site, sae.output_site) == (Site(3, "mlp_input"), Site(3, "mlp_out"))


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens_transcoders(architecture: str, tmp_path: Path) -> None:
    library = saelens()
    kind, config = library.sae.get_sae_class(architecture)
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out", "model_name": "m"}
    sizes = {"d_in": D_MODEL, "d_out": 24, "d_sae": D_SAE, "apply_b_dec_to_input": False}
    theirs = randomise(kind(config(**sizes, metadata=library.sae.SAEMetadata(**metadata))))
    theirs.save_model(tmp_path)
    with torch.no_grad():
        check(tmp_path, theirs.encode(rows()), theirs(rows()))
    sae = load_sae(tmp_path, "small")
    assert (sae.format, sae.site, sae.output_site, sae.d_out) == (
        "sae_lens",
        Site(1, "mlp_input"),
        Site(1, "mlp_out"),
        24,
    )


@pytest.mark.parametrize("name", ["BatchTopK", "MatryoshkaBatchTopK", "JumpReLU", "TopK", "Gated", "Standard"])
def test_what_saelens_trains_and_saves(name: str, tmp_path: Path) -> None:
    """Of BatchTopK and Matryoshka the threshold becomes JumpReLU's; decoder norms and the scale are folded there."""
    library = saelens()
    kind, config = (getattr(library, f"{name}TrainingSAE{end}") for end in ("", "Config"))
    options: dict[str, Any] = {"k": K} if "TopK" in name else {}
    options |= {"matryoshka_widths": [16, D_SAE]} if name.startswith("Matryoshka") else {}
    metadata = library.sae.SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="m")
    theirs = randomise(kind(config(d_in=D_MODEL, d_sae=D_SAE, metadata=metadata, **options)))
    if "Batch" in name:
        theirs.topk_threshold.fill_(0.4)
    theirs.fold_activation_norm_scaling_factor(0.7)
    theirs.save_inference_model(tmp_path)
    reread = library.sae.SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        check(tmp_path, reread.encode(rows()), reread(rows()))


@pytest.mark.parametrize("head", [None, 2])
def test_saelens_on_heads(head: int | None, tmp_path: Path) -> None:
    """SAELens takes [row, head, d_head] and lays the heads side by side, as z lies here."""
    library = saelens()
    metadata = {"hook_name": "blocks.1.attn.hook_z", "model_name": "m", "hook_head_index": head}
    options = {"d_in": D_MODEL, "d_sae": D_SAE, "reshape_activations": "hook_z" if head is None else "none"}
    config = library.StandardSAEConfig(**options, metadata=library.sae.SAEMetadata(**metadata))
    theirs = randomise(library.StandardSAE(config))
    theirs.save_model(tmp_path)
    given = rows().unflatten(1, (4, -1)) if head is None else rows()
    with torch.no_grad():
        check(tmp_path, theirs.encode(given), theirs(given).flatten(1))
    assert load_sae(tmp_path, "small").site == Site(1, "z", head)


def test_a_scale_that_is_stated_is_folded_as_saelens_folds_it(tmp_path: Path) -> None:
    library = saelens()
    metadata = library.sae.SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="m")
    sizes = {"d_in": D_MODEL, "d_sae": D_SAE, "normalize_activations": "expected_average_only_in"}
    theirs = randomise(library.StandardSAE(library.StandardSAEConfig(**sizes, metadata=metadata)))
    theirs.save_model(tmp_path)
    (tmp_path / "actstore.json").write_text('{"norm_scaling_factor": 0.6}')
    theirs.fold_activation_norm_scaling_factor(0.6)
    with torch.no_grad():
        check(tmp_path, theirs.encode(rows()), theirs(rows()))


def test_a_checkpoint_of_training_has_logarithms_of_thresholds(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    library = saelens()
    metadata = library.sae.SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="m")
    theirs = randomise(library.JumpReLUSAE(library.JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE, metadata=metadata)))
    theirs.save_model(tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with torch.no_grad():
        check(tmp_path, theirs.encode(rows()), theirs(rows()))
