"""Sweeps against TransformerLens: its bridge on the same folder, its hook names, its own forward."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.loading import load_model
from actstore_worker.patching.request import PatchingLimits, PromptPair, SweepRequest
from actstore_worker.patching.sweep import SweepResult, run_sweep
from tests.random_models import save_model

CLEAN, CORRUPT = "When Mary and John went , Mary gave", "When Mary and John went , John gave"
# Not resid_mid: the bridge hooks what the MLP's norm reads, which leaves the stream itself as it was.
HOOKS = {kind: f"hook_{kind}" for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
HOOKS |= {kind: f"attn.hook_{kind}" for kind in ("q", "k", "v", "pattern", "z")}


@pytest.mark.filterwarnings("default")  # TransformerLens warns of its own deprecations
@pytest.mark.parametrize("kind", ["neox", "gpt2", "llama-grouped"])
def test_every_cell_equals_transformer_lens(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)  # such small models only wait for their second thread
    from transformer_lens.model_bridge import TransformerBridge

    save_model(tmp_path / kind, kind)
    model = load_model(ModelCatalogue((tmp_path,)).find_model(kind), device=torch.device("cpu"))
    request = SweepRequest(kind, "", (PromptPair(CLEAN, CORRUPT, "John", "Mary"),), sites=tuple(HOOKS))
    *_, result = run_sweep(model, request, PatchingLimits())
    assert isinstance(result, SweepResult)

    bridge = TransformerBridge.boot_transformers(str(tmp_path / kind), device="cpu")
    john, mary = (model.tokenizer.convert_tokens_to_ids(word) for word in ("John", "Mary"))
    clean, corrupt = (
        torch.tensor([[0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]]) for text in (CLEAN, CORRUPT)
    )
    with torch.no_grad():
        caches = {"denoise": bridge.run_with_cache(clean)[1], "noise": bridge.run_with_cache(corrupt)[1]}

    def difference(logits: Tensor) -> float:
        return float(logits[0, -1, john].double() - logits[0, -1, mary].double())

    with torch.no_grad():
        assert result.clean_logit_difference == pytest.approx(difference(bridge(clean)), abs=1e-5)
    for row in result.cells.to_pylist():
        name = f"blocks.{row['layer']}.{HOOKS[row['site']]}"
        source = caches[row["direction"]][name]
        place = (0, row["position"]) if row["head"] is None else (0, row["position"], row["head"])
        if row["site"] == "pattern":  # [batch, head, query, key]
            place = (0, row["head"], row["position"])

        def patch(activation: Tensor, hook: object, source: Tensor = source, place: tuple[int, ...] = place) -> Tensor:
            changed = activation.clone()
            changed[place] = source[place]
            return changed

        with torch.no_grad():
            logits = bridge.run_with_hooks(
                corrupt if row["direction"] == "denoise" else clean, fwd_hooks=[(name, patch)]
            )
        assert row["logit_difference"] == pytest.approx(difference(logits), abs=1e-5), row
