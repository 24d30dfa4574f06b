"""Loads and checks a tokenizer from its files.

tokenizer.json alone decides how a text is split into tokens. Many of transformers' classes take only the vocabulary
from it, and use the rules of the model that they were written for: loaded as a `GPT2Tokenizer`, a tokenizer whose file
splits numbers into digits no longer does. What a class adds to the file, such as GPT-2's BOS, is kept.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.files.damage import DamagedFile, check_file
from actstore_worker.files.strict_json import read_json
from actstore_worker.models.tokens import TOKENIZER
from actstore_worker.models.tokens.tokenizer_rules import check_expressions, check_rules

# The largest published ones are 40 MB; each is parsed in full.
TOKENIZER_BYTES_MAX = 128 << 20
_SETTINGS = "tokenizer_config.json"
# Settings of BERT's tokenizer, and their names in tokenizer.json.
_OF_BERT: Mapping[str, str] = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def check_tokenizer(folder: Path) -> None:
    """Refuses files that are incomplete, refer to other files, contradict each other, tokenize a text differently each
    time, or could take far more than a text needs: DamagedFile.
    """
    for path in sorted(folder.glob("*.json")):
        check_file(path, TOKENIZER_BYTES_MAX)
    settings = _settings(folder)
    _check_paths(settings)
    if (folder / TOKENIZER).is_file():
        told = _told(folder)
        _check_no_dropout(told)
        check_rules(told)
        _check_agreement(settings, told)


def load_tokenizer(folder: Path, config: Any) -> Any:
    """Returns a transformers tokenizer that splits texts as tokenizer.json says, if there is one.

    Errors: anything that the library raises.
    """
    options = {"config": config, "trust_remote_code": False, "local_files_only": True}
    found = AutoTokenizer.from_pretrained(folder, **options)
    if not found.is_fast or not (folder / TOKENIZER).is_file() or type(found) is PreTrainedTokenizerFast:
        return found
    plain = PreTrainedTokenizerFast.from_pretrained(folder, **options, **_roles(found, _told(folder)))
    return found if _cutting(found) == _cutting(plain) else plain


def check_speed(folder: Path, tokenizer: Any) -> None:
    """Refuses regular expressions that could take hours for a text: DamagedFile."""
    if (folder / TOKENIZER).is_file():  # else it is made of a vocabulary, with the rules of its class
        check_expressions(_told(folder), tokenizer.backend_tokenizer)


def check_added(folder: Path, tokenizer: Any) -> None:
    """Refuses settings with another id for a token than it has: DamagedFile. Transformers would give it the next free
    id, whose row in an embedding of rounded size was never trained.
    """
    for said, token in _settings(folder).get("added_tokens_decoder", {}).items():
        if int(said) != (found := tokenizer.convert_tokens_to_ids(token["content"])):
            raise DamagedFile(f"{_SETTINGS} says that {token['content']!r} is token {said}, but it is token {found}")


@contextmanager
def refusing_tokenizer(name: str) -> Iterator[None]:
    """Turns anything that a tokenizer raises into BadRequest MODEL_UNSUPPORTED, including Rust panics, which are not
    Exceptions, for example when a regular expression backtracks past its limit. Errors of ours stay what they are.
    """
    try:
        yield
    except BaseException as error:
        ends = not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        if ends or isinstance(error, ActstoreError):
            raise
        raise BadRequest(
            f"model {name!r} cannot be used: its tokenizer fails: {type(error).__name__}: {error}",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=name,
        ) from error


def tokenizer_sha256(tokenizer: Any) -> str:
    """The hash of the serialized tokenizer (vocabulary, merges, normalizer, added tokens), the roles of special tokens,
    the chat template if there is one, and whether special tokens in a text are treated as text.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # State of the last call, not part of the tokenizer.
    backend["truncation"] = backend["padding"] = None
    roles = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    parts = [backend, roles, template] if template else [backend, roles]
    if tokenizer.split_special_tokens:
        parts.append("split_special_tokens")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _roles(tokenizer: Any, told: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of the class, or of the settings, if tokenizer.json has them."""
    there = {piece if isinstance(piece, str) else piece[0] for piece in told["model"]["vocab"]}
    there |= {token["content"] for token in told["added_tokens"]}
    return {role: str(token) for role, token in tokenizer.special_tokens_map.items() if str(token) in there}


def _cutting(tokenizer: Any) -> Mapping[str, Any]:
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    # An empty prefix means no prefix; files have either.
    model = {name: value for name, value in told["model"].items() if value not in (None, "", False)}
    return {"normalizer": told["normalizer"], "pre_tokenizer": told["pre_tokenizer"], "model": model}


def _settings(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / _SETTINGS, TOKENIZER_BYTES_MAX) if (folder / _SETTINGS).is_file() else {}


def _told(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / TOKENIZER, TOKENIZER_BYTES_MAX)


def _check_paths(settings: Mapping[str, Any]) -> None:
    """If the settings have a `vocab` or `merges` that is text, transformers opens the file of that name, anywhere on
    the machine.
    """
    for name in ("vocab", "merges"):
        if isinstance(settings.get(name), str):
            raise DamagedFile(f"{_SETTINGS} has {name} {settings[name]!r}, which is a path instead of a table")


def _check_no_dropout(told: Mapping[str, Any]) -> None:
    model = told.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise DamagedFile(
            f"{TOKENIZER} has dropout {model['dropout']}, so the same text is tokenized differently each time: set it "
            "to null for inference"
        )


def _check_agreement(settings: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """If two files contradict each other, versions of transformers differ in which one they follow."""
    has = _options(told)
    for name in has.keys() & settings.keys():
        if settings[name] is not None and settings[name] != has[name]:
            raise DamagedFile(
                f"{_SETTINGS} says {name} {settings[name]!r}, but {TOKENIZER} behaves as with {has[name]!r}, and it is "
                "unclear which one the model was trained with; make both the same"
            )


def _options(told: Mapping[str, Any]) -> dict[str, Any]:
    """What tokenizer.json does, with the names of tokenizer_config.json."""
    parts = [part for name in ("normalizer", "pre_tokenizer") for part in _parts(told.get(name))]
    found: dict[str, Any] = {"add_prefix_space": any(map(_puts_space, parts))}
    for part in parts:
        if part.get("type") == "BertNormalizer":
            found |= {option: part.get(name) for option, name in _OF_BERT.items()}
    return found


def _parts(step: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(step, dict):
        inner = step.get("normalizers", step.get("pretokenizers"))
        yield from (part for one in inner for part in _parts(one)) if isinstance(inner, list) else (step,)


def _puts_space(part: Mapping[str, Any]) -> bool:
    """Whether it adds a space in front of a text."""
    if part.get("type") == "Metaspace":  # An older option for the same.
        return bool(part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never") != "never")
    return part.get("type") == "Prepend" or bool(part.get("add_prefix_space"))
