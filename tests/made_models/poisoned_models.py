"""Model folders that are poisoned, and every door of the workers that has to refuse them."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import pytest

from actstore_api.v1 import capture_pb2, model_pb2
from tests.topology.caller import Caller, failure, pair_of, prompt, specification

TEXT = "a" * 60


def _nest(model: Path) -> str:
    (model / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    return "config.json is nested"


def _explode(model: Path) -> str:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    pattern = {"type": "Split", "pattern": {"Regex": "([a-z]+)+[0-9]"}, "behavior": "Isolated", "invert": False}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": pattern}))
    return "its tokenizer fails"


def _link(model: Path) -> str:
    outside = model.parents[1] / "outside.json"
    (model / "tokenizer.json").rename(outside)
    (model / "tokenizer.json").symlink_to(outside)
    return "tokenizer.json is a link to a place outside the model folders"


def _pipe(model: Path) -> str:
    os.mkfifo(model / "special_tokens_map.json")
    return "special_tokens_map.json is not a regular file"


# What is done to a whole model, which says what its refusal names.
POISONS: Mapping[str, Callable[[Path], str]] = {
    "nested": _nest,
    "exploding": _explode,
    "linked": _link,
    "piped": _pipe,
}


def assert_refused_by_every_door(caller: Caller, folder: Path, poison: str) -> None:
    named = POISONS[poison](Path(shutil.copytree(folder / "models" / "tiny", folder / "models" / poison)))
    (folder / "data" / f"{poison}.jsonl").write_text(json.dumps({"text": TEXT}))
    for ask in _doors(caller, poison):
        with pytest.raises(grpc.RpcError) as refusal:
            ask()
        found = failure(refusal.value)
        assert (found.reason, found.details["field"], found.details["value"]) == ("MODEL_UNSUPPORTED", "model", poison)
        assert named in found.message
    assert not [path for path in (folder / "store").rglob("*") if poison in path.name]


def _doors(caller: Caller, name: str) -> list[Callable[[], object]]:
    wanted, ask = specification(name), caller.with_token
    wanted.model.name, wanted.dataset.name = name, f"{name}.jsonl"
    sweep = {"model": wanted.model, "pairs": [pair_of(TEXT, TEXT)]}
    estimate = capture_pb2.EstimateCaptureRequest(specification=wanted)
    attention = model_pb2.GetAttentionRequest(model=wanted.model, text=prompt(TEXT))
    return [
        lambda: caller.start(wanted),
        lambda: caller.captures.EstimateCapture(estimate, **ask),
        lambda: caller.models.GetAttention(attention, **ask),
        lambda: caller.sweep(**sweep),
        lambda: caller.estimate(**sweep),
    ]
