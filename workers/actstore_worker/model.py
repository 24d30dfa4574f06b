"""Language models as actstore runs them: float weights from safetensors, evaluation mode, no gradients, no remote code.

`describe_model` reads what planning needs without loading weights; `read_model` adds the module.
"""

import copy
import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from actstore_storage.errors import BadRequest
from actstore_storage.sites import HEAD_KINDS, Site
from actstore_worker.catalogue import MODEL_CONFIGURATION, ModelSource
from actstore_worker.families import Family, find_family, unsupported_option
from actstore_worker.transformer_lens_files import WEIGHTS as TRANSFORMER_LENS_WEIGHTS
from actstore_worker.transformer_lens_files import find_weights, is_transformer_lens, read_config, read_weights

# transformers' word for where the parts of a model go: "auto" spreads it over the devices that there are.
DeviceMap = str | dict[str, str] | None
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_HASH_CHUNK_BYTES = 1 << 22
# What BERT's encoder never computes with.
_UNUSED = "pooler."
# transformers keeps the state of a load in globals: two at once in a process leave tied weights untied.
_LOADING = threading.Lock()


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

    @property
    def layer_count(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(self.config.hidden_size)

    @property
    def head_count(self) -> int:
        return int(self.config.num_attention_heads)

    @property
    def vocabulary_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def context_length(self) -> int:
        return int(self.config.max_position_embeddings)

    @property
    def bos_id(self) -> int | None:
        """0 is a BOS like any other (Pythia's); only None means that there is none. An encoder's is its CLS token."""
        found = self.tokenizer.bos_token_id if self.family.causal else self.tokenizer.cls_token_id
        return None if found is None else int(found)

    @property
    def end_id(self) -> int | None:
        """What closes a sequence that has a BOS token: an encoder's SEP, which it was trained to see there."""
        found = None if self.family.causal else self.tokenizer.sep_token_id
        return None if found is None else int(found)

    @property
    def attention_implementation(self) -> str:
        return self.family.attention_implementation(self.config)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Residual kinds; `head_counts` has those with heads."""
        return self.family.kinds(self.config)

    @property
    def written_kinds(self) -> tuple[str, ...]:
        """What the parts of a layer add to the residual."""
        return tuple(kind for kind in ("attn_out", "mlp_out") if kind in self.kinds)

    @property
    def inner_kinds(self) -> tuple[str, ...]:
        """Kinds of d_model's width that are no part of the residual stream."""
        return self.family.inner_kinds

    @property
    def head_counts(self) -> Mapping[str, int]:
        """How many heads a site of each kind has: of k and v, where queries share them, fewer."""
        shared = getattr(self.config, "num_key_value_heads", None) or self.head_count
        return {kind: int(shared) if kind in "kv" else self.head_count for kind in HEAD_KINDS}

    def site_width(self, site: Site, context_length: int) -> int:
        """Elements of a token's row at a site; attention weights are over a context of so many tokens."""
        if site.kind not in HEAD_KINDS:
            return self.d_model
        d_head = int(getattr(self.config, "head_dim", None) or self.d_model // self.head_count)
        width = context_length if site.kind == "pattern" else d_head
        return width * (self.head_counts[site.kind] if site.head is None else 1)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)


@dataclass(frozen=True)
class LanguageModel(ModelDescription):
    """`module` is the whole causal language model on `device`; `family.decoder(module)` is its trunk."""

    module: nn.Module
    dtype: str
    # Where token ids go. Parts of a model that is spread over several devices may be on others.
    device: torch.device
    # What attention runs with: `attention_implementation`, or eager, whose weights can be seen.
    attention: str

    @property
    def layers(self) -> nn.ModuleList:
        return self.family.layers_of(self.module)

    def unembed(self, normed: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocabulary"]:
        """Logits of what the final norm gave, with Gemma 2's soft cap."""
        module: Any = self.module
        logits: Tensor = module.get_output_embeddings()(normed)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits


def describe_model(source: ModelSource) -> ModelDescription:
    """Errors: BadRequest MODEL_UNSUPPORTED for another family, quantised weights, or weights not in safetensors."""
    config = _read_config(source)
    tokenizer = _read_tokenizer(source, config)
    return ModelDescription(
        source.name,
        source.revision,
        find_family(config.model_type),
        config,
        tokenizer,
        _files_sha256(weight_files(source)),
        tokenizer_sha256(tokenizer),
    )


def read_model(
    source: ModelSource,
    *,
    dtype: str = "float32",
    device: torch.device,
    attention: str = "",
    device_map: DeviceMap = None,
) -> LanguageModel:
    """As `loading.load_model`, without looking at how the model is wired."""
    described = describe_model(source)
    attention = attention or described.attention_implementation
    with _LOADING:
        module = _read_module(source, described, TORCH_DTYPES[dtype], attention, device_map)
    if device_map is None:
        module = module.to(device)
    # Evaluation mode turns dropout off, without which no two passes would agree.
    module = module.eval().requires_grad_(False)
    known = {field.name: getattr(described, field.name) for field in fields(described)}
    return LanguageModel(**known, module=module, dtype=dtype, device=device, attention=attention)


def share_weights(model: LanguageModel) -> LanguageModel:
    """The same weights in a module of its own, so that two threads can each have their hooks."""
    shared = {id(tensor): tensor for tensor in (*model.module.parameters(), *model.module.buffers())}
    return replace(model, module=copy.deepcopy(model.module, shared))


def token_texts(described: ModelDescription) -> list[str]:
    """The text of every id alone, "" for an id that no token has. Bytes that are no character alone show as U+FFFD."""
    tokenizer = described.tokenizer
    known = set(tokenizer.get_vocab().values())
    size = max(described.vocabulary_size, max(known) + 1)
    ids = [[index] if index in known else [] for index in range(size)]
    return list(tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def weight_files(source: ModelSource) -> list[Path]:
    """The files that the weights are read from, in order of name."""
    if is_transformer_lens(_raw_config(source)):
        found = find_weights(source.folder)
        if found is None:
            raise _unsupported(source, f"it has none of {', '.join(TRANSFORMER_LENS_WEIGHTS)}")
        return [found]
    single, index = source.folder / _WEIGHTS, source.folder / _WEIGHTS_INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [source.folder / Path(name).name for name in sorted(names)]
    raise _unsupported(source, f"it has no {_WEIGHTS}; actstore reads safetensors only")


def weight_shapes(source: ModelSource, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights, as transformers has them; `config` is what it reads of the model's."""
    in_lens_form = is_transformer_lens(_raw_config(source))
    for path in weight_files(source):
        if in_lens_form:
            yield from ((name, tuple(tensor.shape)) for name, tensor in read_weights(path, config).items())
            continue
        with safe_open(path, framework="pt") as file:
            yield from ((name, tuple(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


def tokenizer_sha256(tokenizer: Any) -> str:
    """Over the serialised tokenizer (vocabulary, merges, normaliser, added tokens), the roles of special tokens, and
    the chat template where there is one.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # State of the last call, not part of what the tokenizer is.
    backend["truncation"] = backend["padding"] = None
    roles = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    parts = [backend, roles, template] if template else [backend, roles]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_config(source: ModelSource) -> Any:
    try:
        raw = _raw_config(source)
        if is_transformer_lens(raw):
            _check_tokenizer(source, raw)
            return read_config(raw)
        find_family(raw["model_type"])
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unsupported(source, f"its config.json cannot be read: {error}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise _unsupported(source, "its weights are quantised")
    if why := unsupported_option(config):
        raise _unsupported(source, why)
    return config


def _raw_config(source: ModelSource) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((source.folder / MODEL_CONFIGURATION).read_text())
    return raw


def _check_tokenizer(source: ModelSource, raw: Mapping[str, Any]) -> None:
    """Such a checkpoint names its tokenizer, which lies elsewhere on the hub."""
    if not (source.tokenizer_folder / _TOKENIZER).is_file():
        name = raw.get("tokenizer_name")
        raise _unsupported(source, f"its tokenizer, {name!r}, must lie beside it: there is no {_TOKENIZER}")


def _check_tokenizer_paths(folder: Path) -> None:
    """Its own files make a tokenizer. Where its settings have a `vocab` or `merges` that is text, transformers opens
    the file of that name, wherever on this machine it is. Errors: ValueError.
    """
    settings = folder / _TOKENIZER_SETTINGS
    told = json.loads(settings.read_text()) if settings.is_file() else {}
    for name in ("vocab", "merges"):
        if isinstance(told, dict) and isinstance(told.get(name), str):
            raise ValueError(f"{_TOKENIZER_SETTINGS} has {name} {told[name]!r}, which is a path and no table")


def _read_tokenizer(source: ModelSource, config: Any) -> Any:
    try:
        _check_tokenizer_paths(source.tokenizer_folder)
        tokenizer = AutoTokenizer.from_pretrained(
            source.tokenizer_folder, config=config, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unsupported(source, f"its tokenizer cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise _unsupported(source, "its tokenizer has no tokenizer.json")
    return tokenizer


def _read_module(
    source: ModelSource, described: ModelDescription, dtype: torch.dtype, attention: str, device_map: DeviceMap
) -> nn.Module:
    transformers_logging.disable_progress_bar()  # a worker's log is no terminal
    try:
        module, report = described.family.auto_class.from_pretrained(
            **_weights_from(source, described.config),
            config=described.config,
            dtype=dtype,
            attn_implementation=attention,
            device_map=device_map,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a broken file makes of transformers and safetensors
        raise _unsupported(source, f"its weights cannot be loaded: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        # transformers would go on with random numbers in their place.
        raise _unsupported(source, f"its weight files lack {', '.join(missing)}")
    assert isinstance(module, nn.Module)  # noqa: S101
    return module


def _weights_from(source: ModelSource, config: Any) -> dict[str, Any]:
    """In transformers' words."""
    if is_transformer_lens(_raw_config(source)):
        (path,) = weight_files(source)
        return {"pretrained_model_name_or_path": None, "state_dict": read_weights(path, config)}
    return {"pretrained_model_name_or_path": source.folder, "use_safetensors": True}


def _files_sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _unsupported(source: ModelSource, why: str) -> BadRequest:
    return BadRequest(
        f"model {source.name!r} cannot be used: {why}",
        reason="MODEL_UNSUPPORTED",
        field="model",
        value=f"{source.name}@{source.revision}" if source.revision else source.name,
    )
