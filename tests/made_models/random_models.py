"""Random language models on disk, one of each family, whose weights are large enough for patches to matter."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "ran",
    "to",
    "Mary",
    "John",
    "gave",
    "book",
    "When",
    "and",
    "went",
    "store",
    ",",
    ".",
    "!",
]
VOCABULARY_SIZE, CONTEXT_LENGTH = 64, 32
_SHAPE = {"vocab_size": VOCABULARY_SIZE, "initializer_range": 0.25}


def _neox(*, parallel: bool) -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **_SHAPE,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=48,
            max_position_embeddings=CONTEXT_LENGTH,
            use_parallel_residual=parallel,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(**_SHAPE, n_embd=24, n_layer=3, n_head=3, n_positions=CONTEXT_LENGTH, bos_token_id=0, eos_token_id=0)
    )


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            **_SHAPE,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
            intermediate_size=48,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


BUILDERS = {
    "neox": lambda: _neox(parallel=True),
    "neox-sequential": lambda: _neox(parallel=False),
    "gpt2": _gpt2,
    "llama-grouped": _llama,
}


def save_model(folder: Path, kind: str, *, with_bos: bool = True) -> None:
    """Model and word tokenizer, as `save_pretrained` writes them; the same bytes every time."""
    torch.manual_seed(7)
    BUILDERS[kind]().eval().save_pretrained(folder)
    words = ["<bos>", "<unk>", *WORDS, *(f"w{number}" for number in range(VOCABULARY_SIZE - len(WORDS) - 2))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<bos>"} if with_bos else {}
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special).save_pretrained(folder)
