"""Path patching in plain words: three forward passes with hooks on transformers' own modules, one sender at a time."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Gets what a module takes or gives, as [position, head, width], and writes into it.
Edit = Callable[[Tensor], None]
# A layer's number and a site kind.
Place = tuple[int, str]


@dataclass(frozen=True)
class Names:
    """Where a family keeps its layers, and below each what goes into the output projection of attention (z) and what
    attention and MLP add to the residual.
    """

    layers: str
    z: str
    attn_out: str
    mlp_out: str
    q: str
    k: str
    v: str


_LLAMA = Names("model.layers", "self_attn.o_proj", "self_attn", "mlp", *(f"self_attn.{x}_proj" for x in "qkv"))
_NEOX = Names("gpt_neox.layers", "attention.dense", "attention", "mlp", *(["attention.query_key_value"] * 3))
NAMES: Mapping[str, Names] = {
    "gpt_neox": _NEOX,
    "gpt2": Names("transformer.h", "attn.c_proj", "attn", "mlp", *(["attn.c_attn"] * 3)),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    "gemma2": Names(
        "model.layers", "self_attn.o_proj", "post_attention_layernorm", "post_feedforward_layernorm",
        *(f"self_attn.{x}_proj" for x in "qkv"),
    ),
    "opt": Names(
        "model.decoder.layers", "self_attn.out_proj", "self_attn", "fc2", *(f"self_attn.{x}_proj" for x in "qkv")
    ),
}  # fmt: skip


class PlainPaths:
    """Of one base and one source prompt. Knows nothing of actstore."""

    def __init__(self, module: Any, base: Tensor, source: Tensor) -> None:
        self.module, self.names = module, NAMES[module.config.model_type]
        self.layers: nn.ModuleList = module.get_submodule(self.names.layers)
        self.base, self.source = base[None], source[None]
        kinds = ("resid_pre", "z", "attn_out", "mlp_out", "resid_post", "q", "k", "v")
        self.places: list[Place] = [(layer, kind) for layer in range(len(self.layers)) for kind in kinds]
        self.of_base, self.of_source = (self.record(tokens) for tokens in (self.base, self.source))

    def run(self, tokens: Tensor, edits: Mapping[Place, Edit]) -> Tensor:
        """Logits at the last position."""
        with torch.no_grad(), ExitStack() as hooks:
            for place, edit in edits.items():
                hooks.callback(self.hook(place, edit).remove)
            found: Tensor = self.module(tokens, use_cache=False).logits
        return found[0, -1]

    def record(self, tokens: Tensor, edits: Mapping[Place, Edit] | None = None) -> dict[Place, Tensor]:
        """What each place has before it is edited."""
        seen: dict[Place, Tensor] = {}

        def keeping(place: Place) -> Edit:
            def keep(found: Tensor) -> None:
                seen[place] = found.clone()
                if edits and place in edits:
                    edits[place](found)

            return keep

        self.run(tokens, {place: keeping(place) for place in self.places})
        return seen

    def patched(
        self, sender: Place, head: int | None, positions: list[int], receivers: list[tuple[Place, int | None]],
        *, through_mlps: bool,
    ) -> Tensor:  # fmt: skip
        edits: dict[Place, Edit] = {}
        for layer in range(len(self.layers)):
            held = (layer, "z"), (layer, "mlp_out")
            for place in held[:1] if through_mlps else held:
                edits[place] = self.holding(place, edits.get(place))
        edits[sender] = self.sending(sender, head, positions, edits.get(sender))
        received = self.record(self.base, edits)
        pins: dict[Place, Edit] = {}
        for place, of_head in receivers:
            pins[place] = self.pinning(received[place], of_head, pins.get(place))
        return self.run(self.base, pins)

    def direct(self, sender: Place, head: int | None, positions: list[int], *, through_mlps: bool) -> Tensor:
        """Straight into the logits: nothing is recomputed but what lies behind all layers."""
        edits: dict[Place, Edit] = {}
        for layer in range(len(self.layers)):
            held = (layer, "z"), (layer, "mlp_out")
            for place in held[:1] if through_mlps else held:
                edits[place] = self.holding(place, edits.get(place))
        edits[sender] = self.sending(sender, head, positions, edits.get(sender))
        return self.run(self.base, edits)

    def holding(self, place: Place, before: Edit | None) -> Edit:
        def hold(found: Tensor) -> None:
            found.copy_(self.of_base[place])

        return _after(before, hold)

    def sending(self, place: Place, head: int | None, positions: list[int], before: Edit | None) -> Edit:
        heads = slice(None) if head is None else head

        def send(found: Tensor) -> None:
            found[positions, heads] = self.of_source[place][positions, heads]

        return _after(before, send)

    @staticmethod
    def pinning(received: Tensor, head: int | None, before: Edit | None) -> Edit:
        heads = slice(None) if head is None else head

        def pin(found: Tensor) -> None:
            found[:, heads] = received[:, heads]

        return _after(before, pin)

    def hook(self, place: Place, edit: Edit) -> Any:
        layer, kind = place
        path = {"resid_pre": "", "resid_post": ""}.get(kind) if "resid" in kind else getattr(self.names, kind)
        module = self.layers[layer].get_submodule(path or "")
        if kind in ("resid_pre", "z"):
            return module.register_forward_pre_hook(lambda _, inputs: edit(self.view(kind, inputs[0])))
        return module.register_forward_hook(
            lambda _, __, output: edit(self.view(kind, output[0] if type(output) is tuple else output))
        )

    def view(self, kind: str, found: Tensor) -> Tensor:
        """Edits in place: what a module got or gave."""
        config, rows = self.module.config, found.view(self.base.shape[1], -1)
        heads = config.num_attention_heads
        if kind in ("q", "k", "v") and config.model_type == "gpt_neox":
            return rows.view(len(rows), heads, 3, -1)[:, :, "qkv".index(kind)]
        if kind in ("q", "k", "v") and config.model_type == "gpt2":
            return rows.chunk(3, dim=-1)["qkv".index(kind)].unflatten(-1, (heads, -1))
        if kind in ("k", "v"):
            heads = getattr(config, "num_key_value_heads", None) or heads
        return rows.view(len(rows), heads if kind in ("q", "k", "v", "z") else 1, -1)


def _after(before: Edit | None, edit: Edit) -> Edit:
    def both(found: Tensor) -> None:
        if before is not None:
            before(found)
        edit(found)

    return both
