"""The slow twin of live questions: one text at a time through transformers' own modules, found by their own names.

Knows nothing of actstore's passes, hooks and SAEs. Everything it answers is a NumPy array.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

LAYERS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "bert": "encoder.layer",
}
# What attention gives to the residual, where it is a module's first output.
ATTENTION = {
    "gpt2": "attn",
    "gpt_neox": "attention",
    "attention_only": "attention",
    "gemma2": "post_attention_layernorm",
}
PROJECTION = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "attention_only": "attention.o_proj"}
# What the MLP gives to the residual.
MLP = {"gemma2": "post_feedforward_layernorm"}
BEFORE_MLP = {"gpt2": "ln_2", "gpt_neox": "post_attention_layernorm", "gemma2": "pre_feedforward_layernorm"}
# Changes a tensor [1, position, width] in place, or keeps it.
Touch = Callable[[Tensor], Any]


class PlainModel:
    def __init__(self, module: Any) -> None:
        self.module = module
        self._type = module.config.model_type
        self._layers = module.get_submodule(LAYERS.get(self._type, "model.layers"))

    def logits(self, ids: Sequence[int], touches: Mapping[tuple[str, int], Touch] | None = None) -> NDArray[Any]:
        """[position, vocabulary] while each (kind, layer) is touched."""
        return self._run(ids, touches or {}).logits[0].double().numpy()

    def at(
        self, kind: str, layer: int, ids: Sequence[int], touches: Mapping[tuple[str, int], Touch] | None = None
    ) -> NDArray[np.float32]:
        """[position, width] of a site."""
        seen: list[Tensor] = []
        # The last hook of a module sees what those before it did.
        self._run(ids, touches or {}, (kind, layer, lambda found: seen.append(found.clone())))
        return seen[0][0].numpy()

    def log_probabilities(self, ids: Sequence[int], touches: Mapping[tuple[str, int], Touch] | None = None) -> Any:
        """Of each true next token, from all logits in float64."""
        logits = torch.from_numpy(self.logits(ids, touches)).log_softmax(-1)
        return logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()

    def _run(
        self,
        ids: Sequence[int],
        touches: Mapping[tuple[str, int], Touch],
        last: tuple[str, int, Touch] | None = None,
    ) -> Any:
        with ExitStack() as hooks, torch.no_grad():
            for (kind, layer), touch in touches.items():
                hooks.callback(self._hook(kind, layer, touch).remove)
            if last:
                hooks.callback(self._hook(*last).remove)
            return self.module(input_ids=torch.tensor([list(ids)]))

    def _hook(self, kind: str, layer: int, touch: Touch) -> Any:
        block = self._layers[layer]
        if kind in ("resid_pre", "resid_mid", "mlp_input", "z"):
            mid = BEFORE_MLP.get(self._type, "post_attention_layernorm")
            inside = {"resid_mid": mid, "mlp_input": "mlp", "z": PROJECTION.get(self._type, "self_attn.o_proj")}
            module = block.get_submodule(inside.get(kind, ""))
            return module.register_forward_pre_hook(
                lambda _module, given, named: _do(touch, given[0] if given else named["hidden_states"]),
                with_kwargs=True,
            )
        outside = {"attn_out": ATTENTION.get(self._type, "self_attn"), "mlp_out": MLP.get(self._type, "mlp")}
        module = block.get_submodule(outside.get(kind, ""))
        return module.register_forward_hook(
            lambda _module, _given, found: _do(touch, found[0] if isinstance(found, tuple) else found)
        )


def _do(touch: Touch, tensor: Tensor) -> None:
    """A hook that returns nothing leaves the tensor in its place."""
    touch(tensor)


class PlainSae:
    """A standard SAE in SAELens's format, written out: relu((x - b_dec) W_enc + b_enc), and back."""

    def __init__(self, folder: Path) -> None:
        self.tensors = {
            name: tensor.astype(np.float64) for name, tensor in load_file(folder / "sae_weights.safetensors").items()
        }

    def encode(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return np.maximum((x - self.tensors["b_dec"]) @ self.tensors["W_enc"] + self.tensors["b_enc"], 0)

    def decode(self, activations: NDArray[Any]) -> NDArray[np.float64]:
        return activations @ self.tensors["W_dec"] + self.tensors["b_dec"]
