"""Language models as actstore runs them: float weights from safetensors, evaluation mode, no gradients, no remote code.

`describe_model` reads what planning needs without loading weights; `read_model` adds the module.
"""

import copy
import hashlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_storage.registry.token_texts import TokenTexts
from actstore_worker.models.families import LONGROPE, Family, find_family
from actstore_worker.models.files.configuration import identity_of, identity_sha256, read_configuration
from actstore_worker.models.files.folder import (
    DamagedFile,
    check_tied,
    checked_tensors,
    raw_configuration,
    tensors_in,
    transformer_lens_file,
    weight_files,
)
from actstore_worker.models.files.options import unset_call_options, unsupported_option
from actstore_worker.models.files.places import sha256_of
from actstore_worker.models.files.source import MODEL_CONFIGURATION, ModelSource
from actstore_worker.models.files.stamps import held_still
from actstore_worker.models.files.tensor_names import check_tensors, may_be_left_over, place_of, places
from actstore_worker.models.files.transformer_lens import is_transformer_lens, read_weights
from actstore_worker.models.tokens.texts import describe_tokens
from actstore_worker.models.tokens.tokenizer_files import TOKENIZER, check_added, check_tokenizer, load_tokenizer

# transformers' word for where the parts of a model go: "auto" spreads it over the devices that there are.
DeviceMap = str | dict[str, str] | None
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# transformers keeps the state of a load in globals: two at once in a process leave tied weights untied.
_LOADING = threading.Lock()
_Options = ParamSpec("_Options")
_Found = TypeVar("_Found")


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
    # What of the configuration decides numbers: see `configuration.identity_of`.
    model_config: Mapping[str, Any]

    @cached_property
    def config_sha256(self) -> str:
        return identity_sha256(self.model_config)

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
        return self.family.context_length(self.config)

    @property
    def context_reason(self) -> str:
        """Why a text may not be as long as config.json says, to be said behind `context_length`; else empty."""
        stated = int(self.config.max_position_embeddings)
        if self.context_length == stated:
            return ""
        return (
            f" (not {stated}: its config.json says rope_type {LONGROPE}, with which every position of a longer text "
            "has other frequencies)"
        )

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
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after a sequence that has a BOS token; none where the tokenizer has none."""
        before, after = ((found,) if found is not None else () for found in (self.bos_id, self.end_id))
        return (before, after) if before else ((), ())

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
        """Of tokenizer.json and tokenizer_config.json."""
        added: Mapping[int, Any] = self.tokenizer.added_tokens_decoder
        return added

    @cached_property
    def texts(self) -> TokenTexts:
        return describe_tokens(self.tokenizer, self.vocabulary_size)


@dataclass(frozen=True)
class LanguageModel(ModelDescription):
    """With its weights, for one thread at a time: `turns.SharedModel` is for several."""

    _module: nn.Module = field(repr=False)
    dtype: str
    # Where token ids go. Parts of a model that is spread over several devices may be on others.
    device: torch.device
    # What attention runs with: `attention_implementation`, or eager, whose weights can be seen.
    attention: str

    @property
    def module(self) -> nn.Module:
        """The whole causal language model on `device`; `family.decoder(module)` is its trunk."""
        return self._module

    @property
    def layers(self) -> nn.ModuleList:
        return self.family.layers_of(self.module)

    @property
    def final_norm(self) -> nn.Module:
        """What the last residual goes through before the unembedding; of a model without a norm there, what changes
        nothing.
        """
        parent, _, name = self.family.final_norm.rpartition(".")
        found: nn.Module | None = getattr(self.module.get_submodule(parent), name, None) if name else None
        return nn.Identity() if found is None else found

    def unembed(self, normed: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocabulary"]:
        """Logits of what the final norm gave, with Gemma 2's soft cap."""
        module: Any = self.module
        logits: Tensor = module.get_output_embeddings()(normed)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits


def _of_still_files(
    read: Callable[Concatenate[ModelSource, _Options], _Found],
) -> Callable[Concatenate[ModelSource, _Options], _Found]:
    """`read`, which fails with FILES_CHANGED where the model's files are written meanwhile."""

    @wraps(read)
    def reading(source: ModelSource, /, *options: _Options.args, **named: _Options.kwargs) -> _Found:
        with held_still(source.stamp, "model", source.name):
            return read(source, *options, **named)

    return reading


@_of_still_files
def describe_model(source: ModelSource) -> ModelDescription:
    """Everything that can be known without reading the weights' numbers, and checked: see docs/models.md.

    Errors: BadRequest MODEL_UNSUPPORTED for another family, and for files that are not whole, not safe, or not those of
    one model.
    """
    config = _read_config(source)
    tokenizer = _read_tokenizer(source, config)
    _check_skeleton(source, config)
    described = ModelDescription(
        source.name,
        source.revision,
        find_family(config.model_type),
        config,
        tokenizer,
        sha256_of(weight_files(source)),
        tokenizer_sha256(tokenizer),
        identity_of(config, raw_configuration(source.folder)),
    )
    put_around = [found for found in (described.bos_id, described.end_id) if found is not None]
    check_ids(described, put_around, "its tokenizer puts around each text")
    return described


@_of_still_files
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
        module = _read_module(source, described.config, TORCH_DTYPES[dtype], attention, device_map)
    if device_map is None:
        module = module.to(device)
    _leave_files(module)
    # Evaluation mode turns dropout off, without which no two passes would agree.
    module = module.eval().requires_grad_(False)
    known = {item.name: getattr(described, item.name) for item in fields(described)}
    return LanguageModel(**known, _module=module, dtype=dtype, device=device, attention=attention)


def share_weights(model: LanguageModel) -> LanguageModel:
    """The same weights in a module of its own, so that two threads can each have their hooks."""
    shared = {id(tensor): tensor for tensor in (*model.module.parameters(), *model.module.buffers())}
    return replace(model, _module=copy.deepcopy(model.module, shared))


def check_ids(described: ModelDescription, ids: Collection[int], whence: str) -> None:
    """Errors: BadRequest MODEL_UNSUPPORTED for an id that has no embedding; `whence` says who gives it."""
    strange = [token for token in ids if not 0 <= token < described.vocabulary_size]
    if strange:
        raise BadRequest(
            f"model {described.name!r} has {described.vocabulary_size} embeddings, and none of id {strange[0]}, which "
            f"{whence}: this tokenizer, or this dataset, goes with another model",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=described.name,
            allowed=f"ids from 0 to {described.vocabulary_size - 1}",
        )


def tokenised(described: ModelDescription, texts: list[str]) -> list[list[int]]:
    """The ids of each text alone, without what is put around it.

    Errors: BadRequest MODEL_UNSUPPORTED where the tokenizer gives up.
    """
    with refusing_tokenizer(described.name):
        # verbose: its warning about long texts is about what is refused, or cut, elsewhere.
        found = described.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids


@contextmanager
def refusing_tokenizer(name: str) -> Iterator[None]:
    """Errors: BadRequest MODEL_UNSUPPORTED for whatever a tokenizer raises: also what Rust calls a panic, which is no
    Exception, as where a regular expression backtracks past its limit.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadRequest(
            f"model {name!r} cannot be used: its tokenizer fails: {type(error).__name__}: {error}",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=name,
        ) from error


def weight_shapes(source: ModelSource, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights, as transformers has them; `config` is what it reads of the model's."""
    if is_transformer_lens(raw_configuration(source.folder)):
        weights = read_weights(transformer_lens_file(source), config)
        yield from ((name, tuple(tensor.shape)) for name, tensor in weights.items())
        return
    for path in weight_files(source):
        yield from ((name, shape) for name, shape, _ in tensors_in(path))


def tokenizer_sha256(tokenizer: Any) -> str:
    """Over the serialised tokenizer (vocabulary, merges, normaliser, added tokens), the roles of special tokens, the
    chat template where there is one, and whether special tokens that a text has in it are taken for text.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # State of the last call, not part of what the tokenizer is.
    backend["truncation"] = backend["padding"] = None
    roles = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    parts = [backend, roles, template] if template else [backend, roles]
    if tokenizer.split_special_tokens:
        parts.append("split_special_tokens")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_config(source: ModelSource) -> Any:
    try:
        config = read_configuration(source)
    except BadRequest:
        raise
    except Exception as error:  # whatever a broken file makes of transformers' classes
        raise _unsupported(source, f"its {MODEL_CONFIGURATION} cannot be used: {error}") from error
    if why := unsupported_option(config):
        raise _unsupported(source, why)
    unset_call_options(config)
    return config


def _read_tokenizer(source: ModelSource, config: Any) -> Any:
    folder, raw = source.tokenizer_folder, raw_configuration(source.folder)
    if is_transformer_lens(raw) and not (folder / TOKENIZER).is_file():  # it lies elsewhere on the hub
        name = raw.get("tokenizer_name")
        raise _unsupported(source, f"its tokenizer, {name!r}, must lie beside it: there is no {TOKENIZER}")
    try:
        check_tokenizer(folder)
        with refusing_tokenizer(source.name):
            tokenizer = load_tokenizer(folder, config)
        check_added(folder, tokenizer)
    except DamagedFile as error:
        raise _unsupported(source, str(error)) from error
    if not tokenizer.is_fast:
        raise _unsupported(source, f"its tokenizer has no {TOKENIZER}")
    # Left by whoever saved it. Each call would have to undo it, which fails while another thread tokenises.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _check_skeleton(source: ModelSource, config: Any) -> None:
    """That the weights are the model's, by their names and shapes alone. Errors: BadRequest MODEL_UNSUPPORTED."""
    with _LOADING:
        _read_module(source, copy.deepcopy(config), torch.float32, "eager", "meta")


def _read_module(
    source: ModelSource, config: Any, dtype: torch.dtype, attention: str, device_map: DeviceMap
) -> nn.Module:
    transformers_logging.disable_progress_bar()  # a worker's log is no terminal
    try:
        weights, files = _weights_from(source, config)
        if config.num_hidden_layers > len(files):  # which would take a while to build, to find it wanting
            raise DamagedFile(f"{config.num_hidden_layers} layers are not made of {len(files)} tensors")
        module, report = find_family(config.model_type).auto_class.from_pretrained(
            **weights,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map=device_map,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report has them; they are refused
        )
        check_tensors(module, report, files)
        if device_map == "meta":
            _check_ties(module, files)
    except Exception as error:  # whatever a broken file makes of transformers and safetensors
        raise _unsupported(source, f"its weights cannot be loaded: {error}") from error
    assert isinstance(module, nn.Module)  # noqa: S101
    return module


def _check_ties(module: Any, files: Mapping[str, Path]) -> None:
    """Where the files have both of two weights that are to be one. Errors: DamagedFile."""
    found = places(module, files)
    for pair in module.all_tied_weights_keys.items():
        one, other = (found.get(place_of(module, name)) for name in pair)
        if one and other:
            check_tied(files, one, other)


def _leave_files(module: nn.Module) -> None:
    """Weights that were mapped from a file change with it: whoever overwrote it would change the model in memory."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _weights_from(source: ModelSource, config: Any) -> tuple[dict[str, Any], Mapping[str, Path]]:
    """In transformers' words; and the tensors that are there, by name, with their files."""
    if is_transformer_lens(raw_configuration(source.folder)):
        path = transformer_lens_file(source)
        weights = read_weights(path, config)
        return {"pretrained_model_name_or_path": None, "state_dict": weights}, dict.fromkeys(weights, path)
    files = checked_tensors(source, may_be_left_over)
    return {"pretrained_model_name_or_path": source.folder, "use_safetensors": True}, files


def _unsupported(source: ModelSource, why: str) -> BadRequest:
    return BadRequest(
        f"model {source.name!r} cannot be used: {why}",
        reason="MODEL_UNSUPPORTED",
        field="model",
        value=f"{source.name}@{source.revision}" if source.revision else source.name,
    )
