"""Tiny random models and SAEs on disk, as transformers and SAELens save them, for every test that needs one."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from actstore_worker.models.families.attention_only import (
    SHORTFORMER,
    STANDARD,
    AttentionOnlyConfig,
    AttentionOnlyForCausalLM,
)

REPOSITORY = Path(__file__).parents[2]
BUNDLED_MODELS = REPOSITORY / "models"
CONTEXT_LENGTH, D_MODEL, LAYERS, HEADS = 32, 16, 3, 4
BOS, UNKNOWN_BYTES = "<|bos|>", 256
VOCABULARY_SIZE = UNKNOWN_BYTES + 1


def save_neox(folder: Path, *, parallel: bool = True, bos: bool = True) -> Path:
    config = GPTNeoXConfig(
        **_sizes(), hidden_size=D_MODEL, intermediate_size=4 * D_MODEL, use_parallel_residual=parallel, rotary_pct=0.5
    )
    return _save(folder, lambda: GPTNeoXForCausalLM(config), bos)


def save_gpt2(folder: Path, *, bos: bool = True) -> Path:
    config = GPT2Config(
        vocab_size=VOCABULARY_SIZE, n_embd=D_MODEL, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT_LENGTH,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _save(folder, lambda: GPT2LMHeadModel(config), bos)


def save_llama(folder: Path, *, bos: bool = True) -> Path:
    config = LlamaConfig(**_sizes(), hidden_size=D_MODEL, intermediate_size=3 * D_MODEL, num_key_value_heads=HEADS // 2)
    return _save(folder, lambda: LlamaForCausalLM(config), bos)


# What each further family needs beside the common sizes: heads that share keys, widths of heads, windows and caps that
# matter on sequences as short as ours.
_GROUPED = {"num_key_value_heads": HEADS // 2}
FURTHER: dict[str, dict[str, Any]] = {
    "mistral": _GROUPED | {"sliding_window": 5},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 6},
    "gemma": _GROUPED | {"head_dim": 6},
    "gemma2": _GROUPED
    | {"head_dim": 6, "sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 5},
    "opt": {"ffn_dim": 3 * D_MODEL, "word_embed_proj_dim": D_MODEL},
    "bert": {},
}


def save_family(model_type: str, folder: Path, **options: Any) -> Path:
    sizes = {**_sizes(), "hidden_size": D_MODEL, "intermediate_size": 3 * D_MODEL, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **sizes | FURTHER.get(model_type, {}) | options)
    if model_type == "attention_only":
        return _save(folder, lambda: AttentionOnlyForCausalLM(config), True)
    build = AutoModel if model_type == "bert" else AutoModelForCausalLM
    return _save(folder, lambda: build.from_config(config), True)


def save_attention_only(folder: Path, *, position_embedding: str = STANDARD) -> Path:
    """As transformers saves it; heads together are wider than the residual."""
    config = AttentionOnlyConfig(**_sizes(), hidden_size=D_MODEL, head_dim=6, position_embedding=position_embedding)
    return _save(folder, lambda: AttentionOnlyForCausalLM(config), True)


# By transformers' model_type; the sequential NeoX is a family member with resid_mid.
SAVERS: dict[str, Callable[[Path], Path]] = {
    "neox_parallel": save_neox,
    "neox_sequential": lambda folder: save_neox(folder, parallel=False),
    "gpt2": save_gpt2,
    "llama": save_llama,
    **{name: partial(save_family, name) for name in FURTHER if name != "bert"},
}

# Models without an MLP, which transformers has none of.
ATTENTION_ONLY: dict[str, Callable[[Path], Path]] = {
    "attention_only": save_attention_only,
    "attention_only_shortformer": partial(save_attention_only, position_embedding=SHORTFORMER),
}

# Whatever predicts next tokens.
DECODERS = {**SAVERS, **ATTENTION_ONLY}

# An encoder, for what is about more than next tokens.
BERT: dict[str, Callable[[Path], Path]] = {"bert": partial(save_family, "bert")}


def change_config(folder: Path, **change: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


def small_tokenizer(*, bos: bool = True) -> Tokenizer:
    """One token a byte. BOS has id 0, as Pythia's has, which careless code takes for no BOS at all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {BOS if bos else "<|nothing|>": 0} | {byte: index for index, byte in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_tokenizer(folder: Path, *, bos: bool = True) -> None:
    special = dict.fromkeys(("bos_token", "eos_token", "cls_token", "sep_token"), BOS) if bos else {}
    PreTrainedTokenizerFast(tokenizer_object=small_tokenizer(bos=bos), **special).save_pretrained(folder)


WORDS = ("the quick brown fox jumps over the lazy dog", "Mary gave the book to John and went to the store")


def metaspace_tokenizer() -> Tokenizer:
    """As Llama 2's: a space is put in front of a text, spaces are ▁, bytes stand for what the vocabulary lacks, and
    decoding strips the first space.
    """
    found = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    found.train_from_iterator(
        WORDS * 40, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    told = json.loads(found.to_str())
    told["added_tokens"] = [token for token in told["added_tokens"] if token["content"] in ("<unk>", "<s>", "</s>")]
    told["pre_tokenizer"] = None
    found = Tokenizer.from_str(json.dumps(told))
    found.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return found


def save_metaspace(folder: Path) -> Path:
    """A Llama with such a tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=metaspace_tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    sizes = {**_sizes(), "vocab_size": len(tokenizer), "max_position_embeddings": 128, "bos_token_id": 1}
    config = LlamaConfig(**sizes, hidden_size=D_MODEL, intermediate_size=3 * D_MODEL, num_key_value_heads=HEADS // 2)
    _save(folder, lambda: LlamaForCausalLM(config), True)
    tokenizer.save_pretrained(folder)
    return folder


def save_sae(
    folder: Path, architecture: str, *, d_in: int = D_MODEL, d_sae: int = 64, site: str = "blocks.1.hook_resid_post",
    seed: int = 0, **options: Any,
) -> Path:  # fmt: skip
    """Random weights in SAELens v6's format, with biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    extra = {"standard": ["b_enc"], "topk": ["b_enc"], "jumprelu": ["b_enc", "threshold"]}
    extra["gated"] = ["b_gate", "b_mag", "r_mag"]
    shapes |= dict.fromkeys(extra[architecture], (d_sae,))
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if architecture == "jumprelu":
        tensors["threshold"].abs_()
    config = {
        "architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.20.0", "model_name": "small", "hook_name": site},
    } | ({"k": 8} if architecture == "topk" else {}) | options  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def _sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY_SIZE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT_LENGTH, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def _save(folder: Path, build: Callable[[], Any], bos: bool) -> Path:
    """Weights five times as large as a fresh model's, so that no site is close to another by accident."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder, bos=bos)
    return folder
