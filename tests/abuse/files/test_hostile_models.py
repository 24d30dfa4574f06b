"""Folders of models that are made to harm: each is refused by name, soon, and before it takes memory."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actstore_storage.errors import ActstoreError
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.families import find_family
from actstore_worker.models.loading import describe_model, load_model
from tests.abuse.files.hostile import IN_PLACE_OF_A_FILE, link_out, long_header, pipe, refused
from tests.made_models.lens_folders import save_lens_folder
from tests.made_models.small_models import change_config, save_llama

Poison = Callable[[Path], object]
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "other.json")


# A refusal may say how long something took, and safetensors names either of two tensors that overlap.
BY_CHANCE = r"\d+\.\d+ s|layers\.\d"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A whole model, of which each test has its own."""
    return Path(shutil.copytree(saved, tmp_path / "models" / "model"))


def refusal(model: Path) -> str:
    source = ModelCatalog((model.parent,)).find_model(model.name)
    error = refused(lambda: describe_model(source))
    assert (error.reason, error.details["field"]) == ("MODEL_UNSUPPORTED", "model")
    loading = refused(lambda: load_model(source, device=torch.device("cpu"))).message
    assert re.sub(BY_CHANCE, "", loading) == re.sub(BY_CHANCE, "", error.message)
    return error.message


@pytest.mark.parametrize("kind", IN_PLACE_OF_A_FILE)
@pytest.mark.parametrize("file", FILES)
def test_what_is_not_a_file_of_its_folder_is_not_opened(model: Path, file: str, kind: str) -> None:
    IN_PLACE_OF_A_FILE[kind](model / file)
    assert file in refusal(model)


@pytest.mark.parametrize("file", ["config.json", "additional_chat_templates/one.jinja"])
def test_configuration_and_templates_may_not_lie_elsewhere(model: Path, file: str) -> None:
    (model / "additional_chat_templates").mkdir()
    link_out(model / file)
    assert f"{Path(file).name} is a link to a place outside the model folders" in refusal(model)


def test_a_model_without_a_file_for_its_configuration_is_none(model: Path) -> None:
    pipe(model / "config.json")
    assert refused(lambda: ModelCatalog((model.parent,)).find_model("model")).reason == "MODEL_NOT_FOUND"


def header(change: Callable[[dict[str, Any]], object]) -> Poison:
    """Changes the header of a safetensors file, whose bytes stay as they are."""

    def poison(model: Path) -> None:
        data = (model / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        told = json.loads(data[8 : 8 + size])
        change(told)
        written = json.dumps(told).encode()
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(written)) + written + data[8 + size :])

    return poison


def says_a_length(length: int) -> Poison:
    return lambda model: (model / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")


def first(told: dict[str, Any]) -> dict[str, Any]:
    return next(tensor for name, tensor in told.items() if name != "__metadata__")


def overlap(told: dict[str, Any]) -> None:
    one, other = (told[name] for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"))
    other["data_offsets"] = one["data_offsets"]


def index(weight_map: dict[str, str]) -> Poison:
    def poison(model: Path) -> None:
        (model / "model.safetensors").rename(model.parents[1] / "outside.safetensors")
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return poison


def config(**changes: object) -> Poison:
    return lambda model: change_config(model, **changes)


def tokenizer(**changes: object) -> Poison:
    def poison(model: Path) -> None:
        told = json.loads((model / "tokenizer.json").read_text())
        (model / "tokenizer.json").write_text(json.dumps(told | changes))

    return poison


def splits(expression: str) -> Poison:
    rule = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return tokenizer(pre_tokenizer=rule)


def replaces(content: str, times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [rule] * times}


def added(count: int) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": 257 + number, "content": f"<{number}>"} | flags for number in range(count)]


POISONS: dict[str, tuple[Poison, str]] = {
    "header of a million tensors": (lambda model: long_header(model / "model.safetensors"), "its header has"),
    "header of 2^63 bytes": (says_a_length(2**63), "its header has 9223372036854775808 bytes"),
    "header behind the end": (says_a_length(1000), "is not a complete safetensors file"),
    "overlapping tensors": (header(overlap), "invalid offset"),
    "negative offset": (header(lambda told: first(told).update(data_offsets=[-1, 4])), "not a complete safetensors"),
    "offset behind the end": (header(lambda told: first(told).update(data_offsets=[0, 2**50])), "invalid shape"),
    "shape of 2^80": (header(lambda told: first(told).update(shape=[2**40, 2**40])), "overflow"),
    "index that climbs": (index({"a": "../../outside.safetensors"}), "outside its folder"),
    "absolute index": (index({"a": "/etc/passwd"}), "outside its folder"),
    "endless index": (
        index({str(number): "x.safetensors" for number in range(800_000)}),
        "bytes; the limit is 16777216",
    ),
    "wide": (config(hidden_size=2**40), "hidden_size is '1099511627776', not a whole number from 1 to"),
    "deep": (config(num_hidden_layers=10**6), "num_hidden_layers is '1000000', not a whole number from 1 to 512"),
    "labels": (config(num_labels=10**9), "num_labels is '1000000000', not a whole number from 1 to 65536"),
    "not a number": (config(rms_norm_eps=float("nan")), "NaN is not a JSON number"),
    "number of 400 digits": (config(hidden_size=10**400), "hidden_size is"),
    "large configuration": (config(architectures=["x" * 9] * 100_000), "the limit is 1048576"),
    "many values": (
        lambda model: (model / "tokenizer.json").write_text('{"a": [' + "[]," * 11_000_000 + "1]}"),
        "tokenizer.json has about 22000002 values; the limit is",
    ),
    "long normalizer": (tokenizer(normalizer=replaces("a", 5000)), "its normalizer has more than 4096 values"),
    "growing texts": (tokenizer(normalizer=replaces("a" * 10, 9)), "can make a text 1000000000 times longer"),
    "growing tokens": (
        tokenizer(decoder={"type": "Sequence", "decoders": replaces("a" * 10, 9)["normalizers"]}),
        "its decoder can make a text 1000000000 times longer",
    ),
    "long beginning": (tokenizer(normalizer={"type": "Prepend", "prepend": "x" * 65}), "in front of a text"),
    "many added tokens": (tokenizer(added_tokens=added(65_537)), "65537 added tokens; the limit is 65536"),
    "long words": (
        tokenizer(model={"type": "WordPiece", "max_input_chars_per_word": 10**9, "vocab": {"a": 0}}),
        "its max_input_chars_per_word is 1000000000; the limit is 1024",
    ),
    "time that grows with the square": (splits("(?=\u00e9*b)\u00e9"), "20000 times '\u00e9'; the limit is"),
    "time that explodes": (splits("([a-z]+)+[0-9]"), "its tokenizer fails"),
}  # fmt: skip


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_model_is_refused_before_it_takes_memory(model: Path, poison: str) -> None:
    do, named = POISONS[poison]
    do(model)
    assert named in refusal(model)


def test_code_beside_a_model_is_not_run(model: Path, tmp_path: Path) -> None:
    (model / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    change_config(model, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": ["evil.T"] * 2}}))
    load_model(ModelCatalog((model.parent,)).find_model("model"), device=torch.device("cpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_in_place_of_safetensors_is_not_read(model: Path, name: str) -> None:
    torch.save(load_file(model / "model.safetensors"), model / name)
    (model / "model.safetensors").unlink()
    assert "actstore reads safetensors only" in refusal(model)


class Runs:
    """What runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._file),)


def test_the_pickle_of_a_model_in_transformer_lens_format_runs_no_code(tmp_path: Path) -> None:
    model = save_lens_folder(tmp_path / "models" / "model")
    found = torch.load(model / "model_final.pth", weights_only=True)
    torch.save(found | {"embed.W_E": Runs(tmp_path / "run")}, model / "model_final.pth")
    assert "model_final.pth names 'posix mkdir'" in refusal(model)
    assert not (tmp_path / "run").exists()


def test_a_file_that_changes_while_it_is_read_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def change(config: object) -> None:
        os.truncate(model / "model.safetensors", 4000)
        find_family(config)

    monkeypatch.setattr("actstore_worker.models.loading.find_family", change)
    with pytest.raises(ActstoreError) as error:
        describe_model(ModelCatalog((model.parent,)).find_model("model"))
    assert error.value.reason == "FILES_CHANGED"
