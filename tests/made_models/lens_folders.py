"""Tiny random attention-only models on disk, in the form in which TransformerLens's author publishes his."""

import json
from pathlib import Path

import torch

from tests.made_models.small_models import CONTEXT_LENGTH, D_MODEL, HEADS, LAYERS, VOCABULARY_SIZE, save_tokenizer

D_HEAD = 6


def save_lens_folder(folder: Path, *, shortformer: bool = False, folded: bool = False) -> Path:
    """`folded`: norms without gains and biases."""
    config = {
        "d_model": D_MODEL, "n_layers": LAYERS, "d_mlp": 4 * D_MODEL, "d_head": D_HEAD, "n_heads": HEADS,
        "n_ctx": CONTEXT_LENGTH, "d_vocab": VOCABULARY_SIZE, "act_fn": "gelu", "attn_only": True,
        "normalization": "LNPre" if folded else "LN", "shortformer_pos": shortformer,
        "tokenizer_name": "small-tokenizer",
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(_weights(folded), folder / "model_final.pth")
    save_tokenizer(folder)
    return folder


def _weights(folded: bool) -> dict[str, torch.Tensor]:
    """By the names and shapes of `HookedTransformer.state_dict()`; as large as those of other small models."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (VOCABULARY_SIZE, D_MODEL),
        "pos_embed.W_pos": (CONTEXT_LENGTH, D_MODEL),
        "unembed.W_U": (D_MODEL, VOCABULARY_SIZE),
        "unembed.b_U": (VOCABULARY_SIZE,),
    }
    for layer in range(LAYERS):
        attention = f"blocks.{layer}.attn"
        shapes |= {f"{attention}.W_{part}": (HEADS, D_MODEL, D_HEAD) for part in "QKV"}
        shapes |= {f"{attention}.b_{part}": (HEADS, D_HEAD) for part in "QKV"}
        shapes |= {f"{attention}.W_O": (HEADS, D_HEAD, D_MODEL), f"{attention}.b_O": (D_MODEL,)}
    generator = torch.Generator().manual_seed(0)
    found = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for layer in range(LAYERS):  # which a HookedTransformer's file has beside its weights
        found[f"blocks.{layer}.attn.mask"] = torch.ones(CONTEXT_LENGTH, CONTEXT_LENGTH).tril().bool()
        found[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-1e5)
    norms = () if folded else (*(f"blocks.{layer}.ln1" for layer in range(LAYERS)), "ln_final")
    for norm in norms:
        found[f"{norm}.w"] = 1 + 0.3 * torch.randn(D_MODEL, generator=generator)
        found[f"{norm}.b"] = 0.3 * torch.randn(D_MODEL, generator=generator)
    return found
