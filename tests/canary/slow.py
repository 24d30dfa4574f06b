"""The canary's numbers by the slowest way: plain transformers and numpy, whole forward passes, one text at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from actstore._canary.questions import CONTEXT, LAYERS, MODEL, PROMPTS, SAE, TOP

ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "deploy" / "canary" / "actstore-canary.jsonl"


class Slow:
    """The bundled model and SAE."""

    def __init__(self) -> None:
        folder = ROOT / "models" / MODEL
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._sae = load_file(ROOT / "models" / SAE / "sae_weights.safetensors")

    def golden(self) -> dict[str, Any]:
        """All numbers, in the form of golden.json."""
        streams = [self._streams(ids) for ids in self._sequences()]
        feature, top = self._top(streams)
        return {
            "capture": {"complete": True, "tokens": sum(len(one[0]) for one in streams)},
            "norms": self._norms(streams),
            "feature": feature,
            "top_features": top,
            **{direction: self._sweep(direction) for direction in ("denoise", "noise")},
        }

    def _sequences(self) -> Iterator[list[int]]:
        for line in TEXTS.read_text().splitlines():
            ids = self._ids(json.loads(line)["text"])
            assert len(ids) <= CONTEXT
            yield ids

    def _streams(self, ids: list[int]) -> list[Any]:
        """[layer][position, width] after each layer."""
        seen: list[Any] = []
        hooks = [
            layer.register_forward_hook(lambda _m, _a, out: seen.append(_first(out)[0].numpy()))
            for layer in self._model.gpt_neox.layers
        ]
        with torch.no_grad():
            self._model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        return seen

    def _norms(self, streams: list[list[Any]]) -> list[float]:
        """The mean norm of each layer, of all tokens but BOS."""
        by_layer = zip(*streams, strict=True)
        return [float(np.concatenate([np.linalg.norm(one[1:], axis=1) for one in layer]).mean()) for layer in by_layer]

    def _top(self, streams: list[list[Any]]) -> tuple[int, list[float]]:
        """The feature whose examples stay strong, and their activations, one from a sequence; BOS does not count."""
        strongest = np.stack([self._features(one[1][1:]).max(axis=0) for one in streams])
        ranked = -np.sort(-strongest, axis=0)[:TOP]
        feature = int(np.argmax(ranked[-1]))
        return feature, [float(value) for value in ranked[:, feature]]

    def _features(self, rows: Any) -> Any:
        """TopK over pre-activations that are scaled by the decoder's norms."""
        norms = np.linalg.norm(self._sae["W_dec"], axis=1)
        before = (rows - self._sae["b_dec"]) @ self._sae["W_enc"] + self._sae["b_enc"]
        scaled = np.maximum(before * norms, 0)
        kept = np.sort(scaled, axis=1)[:, -16:][:, :1]
        return np.where(scaled >= kept, scaled, 0) / norms

    def _sweep(self, direction: str) -> list[float]:
        """Of each (layer, position), the normalized logit difference after replacing resid_pre there."""
        prompts = [self._ids(text) for text in PROMPTS[:2]]
        source, base = prompts if direction == "denoise" else reversed(prompts)
        answers = [self._ids(text)[1] for text in PROMPTS[2]]
        inputs = self._inputs(source)
        reached, unpatched = self._difference(source, answers), self._difference(base, answers)

        def cell(layer: int, position: int) -> float:
            patched = self._difference(base, answers, (layer, position, inputs[layer][position]))
            return (patched - unpatched) / (reached - unpatched)

        return [cell(layer, position) for layer in LAYERS for position in range(len(source))]

    def _ids(self, text: str) -> list[int]:
        """Behind a BOS."""
        return [0, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _inputs(self, ids: list[int]) -> list[Any]:
        seen: list[Any] = []
        layers = self._model.gpt_neox.layers
        hooks = [layer.register_forward_pre_hook(lambda _m, a: seen.append(a[0][0].clone())) for layer in layers]
        with torch.no_grad():
            self._model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        return seen

    def _difference(self, ids: list[int], tokens: list[int], patch: tuple[int, int, Any] | None = None) -> float:
        with self._patched(patch), torch.no_grad():
            logits = self._model(torch.tensor([ids])).logits[0, -1]
        return float(logits[tokens[0]] - logits[tokens[1]])

    @contextmanager
    def _patched(self, patch: tuple[int, int, Any] | None) -> Iterator[None]:
        if patch is None:
            yield
            return
        layer, position, value = patch

        def replace(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            changed = arguments[0].clone()
            changed[0, position] = value
            return (changed, *arguments[1:])

        hook = self._model.gpt_neox.layers[layer].register_forward_pre_hook(replace)
        yield
        hook.remove()


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out
