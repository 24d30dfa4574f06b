"""Loads models from their files. Everything that can be known is checked before a number is computed.

`describe_model` reads what planning needs without loading weights; `read_model` adds the module, and `load_model` also
checks its wiring.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from actstore_storage.errors import BadRequest
from actstore_worker.files.damage import DamagedFile
from actstore_worker.files.places import sha256_of
from actstore_worker.files.stamps import held_still
from actstore_worker.models.dtypes import TORCH_DTYPES
from actstore_worker.models.families import find_family
from actstore_worker.models.files.configuration import read_configuration
from actstore_worker.models.files.folder import (
    check_tied,
    checked_tensors,
    raw_configuration,
    tensors_in,
    transformer_lens_file,
    weight_files,
)
from actstore_worker.models.files.identity import identity_of
from actstore_worker.models.files.options import unset_call_options, unsupported_option
from actstore_worker.models.files.source import MODEL_CONFIGURATION, ModelSource
from actstore_worker.models.files.tensor_names import check_tensors, may_be_left_over, place_of, places
from actstore_worker.models.files.transformer_lens import is_transformer_lens, read_weights
from actstore_worker.models.model import LanguageModel, ModelDescription
from actstore_worker.models.prompts import check_ids
from actstore_worker.models.tokens import TOKENIZER
from actstore_worker.models.tokens.tokenizer_files import (
    check_added,
    check_speed,
    check_tokenizer,
    load_tokenizer,
    refusing_tokenizer,
    tokenizer_sha256,
)
from actstore_worker.models.wiring import check_weights, check_wiring

# transformers' argument for the placement of a model's parts: "auto" spreads it over all devices.
DeviceMap = str | dict[str, str] | None
# transformers keeps the state of a load in globals: two loads at once in a process leave tied weights untied.
_LOADING = threading.Lock()
_Options = ParamSpec("_Options")
_Found = TypeVar("_Found")


def _of_still_files(
    read: Callable[Concatenate[ModelSource, _Options], _Found],
) -> Callable[Concatenate[ModelSource, _Options], _Found]:
    """Runs `read`, and fails with FILES_CHANGED if the model's files change meanwhile. Nothing is read of a folder with
    links that lead outside, or with anything that is not a file in place of one.
    """

    @wraps(read)
    def reading(source: ModelSource, /, *options: _Options.args, **named: _Options.kwargs) -> _Found:
        try:
            source.check()
        except DamagedFile as error:
            raise _unsupported(source, str(error)) from error
        with held_still(source.stamp, "model", source.name):
            return read(source, *options, **named)

    return reading


@_of_still_files
def describe_model(source: ModelSource) -> ModelDescription:
    """Returns and checks what can be known without reading the weights' values: see docs/reference/models.md.

    Errors: BadRequest MODEL_UNSUPPORTED for an unsupported family, and for files that are incomplete, unsafe, or do not
    fit each other.
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
    check_ids(described, put_around, "its tokenizer adds to each text")
    return described


def load_model(
    source: ModelSource,
    *,
    dtype: str = "float32",
    device: torch.device,
    attention: str = "",
    device_map: DeviceMap = None,
) -> LanguageModel:
    """Loads a model that computes in `dtype`, whatever the file's dtype, with the family's default attention or the
    requested one.

    Errors: BadRequest MODEL_UNSUPPORTED as `describe_model`; for weights that do not fit; and as `check_weights` and
    `check_wiring`.
    """
    model = read_model(source, dtype=dtype, device=device, attention=attention, device_map=device_map)
    check_weights(model)
    check_wiring(model)
    return model


@_of_still_files
def read_model(
    source: ModelSource,
    *,
    dtype: str = "float32",
    device: torch.device,
    attention: str = "",
    device_map: DeviceMap = None,
) -> LanguageModel:
    """As `load_model`, without checking the model's wiring."""
    described = describe_model(source)
    attention = attention or described.attention_implementation
    with _LOADING:
        module = _read_module(source, described.config, TORCH_DTYPES[dtype], attention, device_map)
    if device_map is None:
        module = module.to(device)
    _leave_files(module)
    # Evaluation mode turns off dropout, without which no two passes would agree.
    module = module.eval().requires_grad_(False)
    known = {item.name: getattr(described, item.name) for item in fields(described)}
    return LanguageModel(**known, _module=module, dtype=dtype, device=device, attention=attention)


def weight_shapes(source: ModelSource, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights, as in transformers. `config` is transformers' configuration of the model."""
    if is_transformer_lens(raw_configuration(source.folder)):
        weights = read_weights(transformer_lens_file(source), config)
        yield from ((name, tuple(tensor.shape)) for name, tensor in weights.items())
        return
    for path in weight_files(source):
        yield from ((name, shape) for name, shape, _ in tensors_in(path))


def _read_config(source: ModelSource) -> Any:
    try:
        config = read_configuration(source)
    except BadRequest:
        raise
    except Exception as error:  # Broken files can make transformers' classes raise anything.
        raise _unsupported(source, f"its {MODEL_CONFIGURATION} cannot be used: {error}") from error
    if why := unsupported_option(config):
        raise _unsupported(source, why)
    unset_call_options(config)
    return config


def _read_tokenizer(source: ModelSource, config: Any) -> Any:
    folder, raw = source.tokenizer_folder, raw_configuration(source.folder)
    if is_transformer_lens(raw) and not (folder / TOKENIZER).is_file():  # On the hub it is in another repository.
        name = raw.get("tokenizer_name")
        raise _unsupported(source, f"its folder must also contain its tokenizer, {name!r}: there is no {TOKENIZER}")
    try:
        check_tokenizer(folder)
        with refusing_tokenizer(source.name):
            tokenizer = load_tokenizer(folder, config)
            if tokenizer.is_fast:
                check_speed(folder, tokenizer)
        check_added(folder, tokenizer)
    except DamagedFile as error:
        raise _unsupported(source, str(error)) from error
    if not tokenizer.is_fast:
        raise _unsupported(source, f"its tokenizer has no {TOKENIZER}")
    # Truncation or padding that was saved with the tokenizer. Each call would have to undo it, which fails while
    # another thread tokenizes.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _check_skeleton(source: ModelSource, config: Any) -> None:
    """Checks names and shapes of the weights against the model. Errors: BadRequest MODEL_UNSUPPORTED."""
    with _LOADING:
        _read_module(source, copy.deepcopy(config), torch.float32, "eager", "meta")


def _read_module(
    source: ModelSource, config: Any, dtype: torch.dtype, attention: str, device_map: DeviceMap
) -> nn.Module:
    transformers_logging.disable_progress_bar()  # A worker's log is not a terminal.
    try:
        weights, files = _weights_from(source, config)
        if config.num_hidden_layers > len(files):  # building it first would take a while
            raise DamagedFile(f"{config.num_hidden_layers} layers cannot be stored in {len(files)} tensors")
        module, report = find_family(config.model_type).auto_class.from_pretrained(
            **weights,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map=device_map,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # So that the report has them; they are refused later.
        )
        check_tensors(module, report, files)
        if device_map == "meta":
            _check_ties(module, files)
    except Exception as error:  # Broken files can make transformers and safetensors raise anything.
        raise _unsupported(source, f"its weights cannot be loaded: {error}") from error
    assert isinstance(module, nn.Module)  # noqa: S101
    return module


def _check_ties(module: Any, files: Mapping[str, Path]) -> None:
    """Checks weights that are to be tied, if the files have both of them. Errors: DamagedFile."""
    found = places(module, files)
    for pair in module.all_tied_weights_keys.items():
        one, other = (found.get(place_of(module, name)) for name in pair)
        if one and other:
            check_tied(files, one, other)


def _leave_files(module: nn.Module) -> None:
    """Copies weights out of memory-mapped files, because overwriting a file would change the model in memory."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _weights_from(source: ModelSource, config: Any) -> tuple[dict[str, Any], Mapping[str, Path]]:
    """Returns transformers' arguments, and the tensors of the files by name."""
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
