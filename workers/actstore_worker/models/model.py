"""Language models as actstore runs them: float weights, evaluation mode, no gradients, no remote code.

`loading.py` loads them from their files.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_storage.registry.token_texts import TokenTexts
from actstore_worker.models.families.family import LONGROPE, Family
from actstore_worker.models.files.identity import identity_sha256
from actstore_worker.models.tokens.texts import describe_tokens


@dataclass(frozen=True)
class ModelDescription:
    """A model without its weights. `config` and `tokenizer` are transformers' own."""

    name: str
    revision: str
    family: Family
    config: Any
    tokenizer: Any
    weights_sha256: str
    tokenizer_sha256: str
    # The configuration options that affect numbers: see `identity.identity_of`.
    model_config: Mapping[str, Any]

    @cached_property
    def config_sha256(self) -> str:
        """The hash of the configuration options that affect numbers."""
        return identity_sha256(self.model_config)

    @property
    def layer_count(self) -> int:
        """How many layers it has."""
        return int(self.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def head_count(self) -> int:
        """Query heads of a layer."""
        return int(self.config.num_attention_heads)

    @property
    def vocabulary_size(self) -> int:
        """The number of embeddings: ids are below it."""
        return int(self.config.vocab_size)

    @property
    def context_length(self) -> int:
        """The largest number of tokens in a text."""
        return self.family.context_length(self.config)

    @cached_property
    def longest_token(self) -> int:
        """The number of characters of the longest token."""
        return max(map(len, self.texts.alone), default=1)

    @property
    def context_reason(self) -> str:
        """Why a text cannot be as long as config.json says, as the continuation of a sentence; else empty."""
        stated = int(self.config.max_position_embeddings)
        if self.context_length == stated:
            return ""
        return (
            f" (not {stated}: its config.json says rope_type {LONGROPE}, with which every position of a longer text "
            "has other frequencies)"
        )

    @property
    def bos_id(self) -> int | None:
        """The id of BOS. 0 is a valid one (Pythia's); only None means that there is none. An encoder's is its CLS
        token.
        """
        found = self.tokenizer.bos_token_id if self.family.causal else self.tokenizer.cls_token_id
        return None if found is None else int(found)

    @property
    def end_id(self) -> int | None:
        """The id that closes a sequence with a BOS token: an encoder's SEP, because it was trained with it."""
        found = None if self.family.causal else self.tokenizer.sep_token_id
        return None if found is None else int(found)

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after a sequence with a BOS token; none if the tokenizer has none."""
        before, after = ((found,) if found is not None else () for found in (self.bos_id, self.end_id))
        return (before, after) if before else ((), ())

    @property
    def attention_implementation(self) -> str:
        """The default attention implementation, named as in transformers."""
        return self.family.attention_implementation(self.config)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the residual stream; `head_counts` has those with heads."""
        return self.family.kinds(self.config)

    @property
    def written_kinds(self) -> tuple[str, ...]:
        """The kinds that the parts of a layer add to the residual."""
        return tuple(kind for kind in ("attn_out", "mlp_out") if kind in self.kinds)

    @property
    def inner_kinds(self) -> tuple[str, ...]:
        """Kinds of width d_model that are not part of the residual stream."""
        return self.family.inner_kinds

    @property
    def head_counts(self) -> Mapping[str, int]:
        """The number of heads at a site of each kind. If queries share k and v, these have fewer."""
        shared = getattr(self.config, "num_key_value_heads", None) or self.head_count
        return {kind: int(shared) if kind in "kv" else self.head_count for kind in HEAD_KINDS}

    def site_width(self, site: Site, context_length: int) -> int:
        """The number of elements in a token's row at a site; attention weights depend on this context length."""
        if site.kind not in HEAD_KINDS:
            return self.d_model
        d_head = int(getattr(self.config, "head_dim", None) or self.d_model // self.head_count)
        width = context_length if site.kind == "pattern" else d_head
        return width * (self.head_counts[site.kind] if site.head is None else 1)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens with a role (BOS, end, padding ...) and those that the tokenizer's files mark as special, such as the
        markers of a chat template.
        """
        return self._role_ids | {token_id for token_id, token in self._added_tokens.items() if token.special}

    @property
    def marks_special(self) -> bool:
        """Whether tokens without a role are special, too."""
        return self.special_ids != self._role_ids

    @property
    def _role_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    @property
    def _added_tokens(self) -> Mapping[int, Any]:
        """The added tokens of tokenizer.json and tokenizer_config.json."""
        added: Mapping[int, Any] = self.tokenizer.added_tokens_decoder
        return added

    @cached_property
    def texts(self) -> TokenTexts:
        """The text of each token id."""
        return describe_tokens(self.tokenizer, self.vocabulary_size)


@dataclass(frozen=True)
class LanguageModel(ModelDescription):
    """A model with its weights, for one thread at a time. `turns.SharedModel` is for several."""

    _module: nn.Module = field(repr=False)
    dtype: str
    # The device of token ids. Parts of a model that is spread over several devices may be on others.
    device: torch.device
    # The attention implementation: `attention_implementation`, or eager, whose weights can be read.
    attention: str

    @property
    def module(self) -> nn.Module:
        """The whole causal language model on `device`; `family.decoder(module)` is its trunk."""
        return self._module

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        return self.family.layers_of(self.module)

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the unembedding; for a model without one, the identity."""
        parent, _, name = self.family.final_norm.rpartition(".")
        found: nn.Module | None = getattr(self.module.get_submodule(parent), name, None) if name else None
        return nn.Identity() if found is None else found

    def unembed(self, normed: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocabulary"]:
        """Returns the logits of the final norm's output, with Gemma 2's soft cap."""
        module: Any = self.module
        logits: Tensor = module.get_output_embeddings()(normed)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits


def share_weights(model: LanguageModel) -> LanguageModel:
    """Returns a separate module over the same weights, so that two threads can each have their own hooks."""
    shared = {id(tensor): tensor for tensor in (*model.module.parameters(), *model.module.buffers())}
    return replace(model, _module=copy.deepcopy(model.module, shared))
