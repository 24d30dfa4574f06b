"""Patched embeddings against TransformerLens's hook_embed, at the same positions and at others, as prompts or spans."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep
from actstore_api.records.terms import ModelReference, Range
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.made_models.random_models import save_model

CLEAN, CORRUPT = "When Mary and John went , Mary gave", "When Mary and John went , John gave"
LONGER = "When the dog and John went , John gave"
# In CLEAN and in LONGER, BOS counted.
SPANS = {"who": (range(2, 3), range(3, 4)), "end": (range(5, 9), range(6, 10))}


@pytest.mark.filterwarnings("default")  # TransformerLens warns of its own deprecations
@pytest.mark.parametrize("kind", ["neox", "gpt2", "llama-grouped"])
def test_embeddings_equal_hook_embed(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformer_lens.model_bridge import TransformerBridge

    save_model(tmp_path / kind, kind)
    model = load_model(ModelCatalog((tmp_path,)).find_model(kind), device=torch.device("cpu"))
    bridge = TransformerBridge.boot_transformers(str(tmp_path / kind), device="cpu")
    john, mary = (model.tokenizer.convert_tokens_to_ids(word) for word in ("John", "Mary"))

    def ids(text: str) -> Tensor:
        return torch.tensor([[0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])

    def patched(base: str, source: str, into: range, out_of: range, *, zero: bool) -> float:
        _, cache = bridge.run_with_cache(ids(source))
        rows = cache["hook_embed"][0, list(out_of)]

        def patch(embedding: Tensor, hook: object) -> Tensor:
            changed = embedding.clone()
            changed[0, list(into)] = torch.zeros_like(rows) if zero else rows
            return changed

        logits = bridge.run_with_hooks(ids(base), fwd_hooks=[("hook_embed", patch)])[0, -1].double()
        return float(logits[john] - logits[mary])

    spans = tuple(
        PatchSpan(name, *(Range(places.start, places.stop) for places in both)) for name, both in SPANS.items()
    )
    for corrupt, named in ((CORRUPT, ()), (LONGER, spans)):
        pair = PromptPair(CLEAN, corrupt, "John", "Mary")
        for source in ("prompt", "zero"):
            request = RunSweep(ModelReference(kind), (pair,), sites=("embedding",), source=source, spans=named)
            *_, result = run_sweep(model, request, PatchingLimits())
            assert isinstance(result, WholeSweep)
            rows = result.cells.to_pylist()
            assert len(rows) == 2 * (len(spans) if named else 9)  # directions, and spans or positions
            for row in rows:
                both = SPANS[row["name"]] if named else (range(row["position"], row["position"] + 1),) * 2
                sides = ((CLEAN, both[0]), (corrupt, both[1]))
                (other, out_of), (base, into) = sides if row["direction"] == "denoise" else sides[::-1]
                with torch.no_grad():
                    expected = patched(base, other, into, out_of, zero=source == "zero")
                assert row["logit_difference"] == pytest.approx(expected, abs=1e-5), row
