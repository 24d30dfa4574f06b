"""Questions to a model against TransformerLens: its bridge on the same folder, its head detector, its hook names."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actstore_api.records.model import AblateSites, GetAttention, GetInductionScores, GetTextLens
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.answering import LiveAnswers, Question
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import Turns, share
from tests.made_models.random_models import VOCABULARY_SIZE, save_model

# Every word twice and more, so that each score has something to find.
TEXT = "When Mary and John went , Mary and John gave Mary"
KINDS = ["neox", "gpt2", "llama-grouped"]
NAMES = {"previous_token": "previous_token_head", "duplicate_token": "duplicate_token_head"}
NAMES |= {"induction": "induction_head"}
HOOKS = {"attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "z": "attn.hook_z"}


class Sides:
    def __init__(self, folder: Path, kind: str) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        save_model(folder / "models" / kind, kind)
        (folder / "store").mkdir()
        self.catalog = ModelCatalog((folder / "models",))
        self.model: LanguageModel = load_model(self.catalog.find_model(kind), device=torch.device("cpu"))
        self.bridge: Any = TransformerBridge.boot_transformers(str(folder / "models" / kind), device="cpu")
        self._store = str(folder / "store")

    def ask(self, question: Question) -> Any:
        answers = LiveAnswers(self.catalog, open_bucket(self._store), torch.device("cpu"), LiveLimits())
        return answers.answer(question, share(self.model, Turns()), threading.Event())

    def ids(self, text: str) -> Tensor:
        return torch.tensor([[0, *self.model.tokenizer(text, add_special_tokens=False)["input_ids"]]])

    @property
    def heads(self) -> list[tuple[int, int]]:
        return [(layer, head) for layer in range(self.model.layer_count) for head in range(self.model.head_count)]

    def cache(self, ids: Tensor) -> Any:
        with torch.no_grad():
            return self.bridge.run_with_cache(ids)[1]


@pytest.fixture(scope="module", params=KINDS)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return Sides(tmp_path_factory.mktemp("live"), request.param)


pytestmark = pytest.mark.filterwarnings("default")  # TransformerLens warns of its own deprecations


def detector_scores(pattern: Tensor, ids: Tensor) -> dict[str, float]:
    """Of one head's weights [query, key], by what `detect_head` is made of."""
    from transformer_lens import head_detector

    found = {}
    for ours, theirs in NAMES.items():
        wanted = getattr(head_detector, f"get_{theirs}_detection_pattern")(ids)
        found[ours] = head_detector.compute_head_attention_similarity_score(
            pattern, wanted, exclude_bos=False, exclude_current_token=False, error_measure="mul"
        )
    return found


def test_attention_and_what_the_head_detector_says_of_it(sides: Sides) -> None:
    answer = sides.ask(GetAttention(ModelReference(sides.model.name), TEXT, patterns=True))
    ids = sides.ids(TEXT)
    cache = sides.cache(ids)
    rows = answer.patterns.to_pydict()
    found = np.zeros((sides.model.layer_count, sides.model.head_count, ids.shape[1], ids.shape[1]), np.float32)
    found[rows["layer"], rows["head"], rows["query"], rows["key"]] = rows["weight"]
    assert [(row["layer"], row["head"]) for row in answer.heads.to_pylist()] == sides.heads
    for row in answer.heads.to_pylist():
        expected = cache[f"blocks.{row['layer']}.attn.hook_pattern"][0, row["head"]]
        np.testing.assert_allclose(found[row["layer"], row["head"]], expected, atol=1e-6)
        scores = detector_scores(expected, ids)
        assert {name: row[name] for name in NAMES} == pytest.approx(scores, abs=1e-6)
        assert row["induction"] > 0


def test_induction_scores_are_the_detectors_share_of_the_second_time(sides: Sides) -> None:
    """The detector's mean is over all queries, of which those of the first time see nothing twice."""
    tokens = 8
    answer = sides.ask(GetInductionScores(ModelReference(sides.model.name), tokens=tokens, texts=1, seed=2))
    plain = sorted(set(sides.model.tokenizer.get_vocab().values()) - sides.model.special_ids)
    half = np.random.default_rng(2).permutation(np.array(plain))[:tokens].tolist()
    ids = torch.tensor([[0, *half, *half]])
    cache = sides.cache(ids)
    assert [(row["layer"], row["head"]) for row in answer.heads.to_pylist()] == sides.heads
    for row in answer.heads.to_pylist():
        scores = detector_scores(cache[f"blocks.{row['layer']}.attn.hook_pattern"][0, row["head"]], ids)
        share = (2 * tokens + 1) / tokens
        for name in ("induction", "duplicate_token"):
            assert row[name] == pytest.approx(scores[name] * share, abs=1e-6)


def test_the_lens_is_the_bridges_final_norm_and_unembedding(sides: Sides) -> None:
    answer = sides.ask(GetTextLens(ModelReference(sides.model.name), TEXT, k=VOCABULARY_SIZE))
    cache = sides.cache(sides.ids(TEXT))
    rows = answer.tops.to_pydict()
    positions = sides.ids(TEXT).shape[1]
    found = np.zeros((sides.model.layer_count, positions, VOCABULARY_SIZE))
    found[rows["layer"], rows["position"], rows["token"]] = rows["logit"]
    for layer in range(sides.model.layer_count):
        with torch.no_grad():
            expected = sides.bridge.unembed(sides.bridge.ln_final(cache[f"blocks.{layer}.hook_resid_post"]))[0]
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-4)


def test_ablations_are_the_bridges_losses_under_hooks(sides: Sides) -> None:
    """Zero, and the mean over the text's tokens but BOS; the loss is over the tokens that follow them."""
    ids = sides.ids(TEXT)
    cache = sides.cache(ids)
    for ablation in ("zero", "mean"):
        answer = sides.ask(AblateSites(ModelReference(sides.model.name), (TEXT,), ablation=ablation))
        places = [(row["kind"], row["layer"], row["head"]) for row in answer.effects.to_pylist()]
        layers = range(sides.model.layer_count)
        whole = [(kind, layer, None) for kind in ("attn_out", "mlp_out") for layer in layers]
        assert sorted(places, key=str) == sorted([*whole, *(("z", *head) for head in sides.heads)], key=str)
        for row in answer.effects.to_pylist():
            name = f"blocks.{row['layer']}.{HOOKS[row['kind']]}"
            mean = cache[name][0, 1:].mean(0)

            def ablate(found: Tensor, hook: object, row: Any = row, mean: Tensor = mean) -> Tensor:
                changed = found.clone()
                head = slice(None) if row["head"] is None else row["head"]
                value = torch.zeros_like(mean) if ablation == "zero" else mean  # noqa: B023  called at once
                if row["head"] is None:
                    changed[0, 1:] = value
                else:
                    changed[0, 1:, head] = value[head]
                return changed

            with torch.no_grad():
                logits = sides.bridge.run_with_hooks(ids, fwd_hooks=[(name, ablate)])
            logs = logits[0].double().log_softmax(-1)
            loss = -logs[1:-1].gather(-1, ids[0, 2:, None]).mean()
            assert row["loss"] == pytest.approx(float(loss), abs=1e-5), row
