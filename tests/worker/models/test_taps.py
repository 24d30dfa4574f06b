"""What the hooks at a site see and change, however a module is called."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actstore_storage.format.sites import Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import changing, observe
from tests.made_models.small_models import DECODERS

IDS = torch.tensor([[0, 5, 6, 7], [0, 3, 2, 8]])
ENTERS, LEAVES = Site(1, "resid_pre"), Site(1, "resid_post")


@pytest.fixture(params=["attention_only", "llama"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    DECODERS[request.param](tmp_path / "small")
    return load_model(ModelCatalog((tmp_path,)).find_model("small"), device=torch.device("cpu"))


def call_by_name(model: LanguageModel, patch: pytest.MonkeyPatch) -> list[int]:
    """Has the layers called as some versions of transformers call modules; one entry a call."""
    calls: list[int] = []

    def call(layer: nn.Module, hidden_states: Tensor, **named: Any) -> Any:
        calls.append(1)
        return nn.Module.__call__(layer, hidden_states=hidden_states, **named)

    patch.setattr(type(model.layers[0]), "__call__", call)
    return calls


def doubled(model: LanguageModel) -> Tensor:
    with changing(model, {ENTERS: lambda found: 2 * found}, IDS.shape):
        return observe(model, IDS, None, [LEAVES])[LEAVES]


def test_an_input_by_keyword_is_seen(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = observe(model, IDS, None, [ENTERS, LEAVES])
    calls = call_by_name(model, monkeypatch)
    found = observe(model, IDS, None, [ENTERS, LEAVES])
    assert calls
    for site, tensor in expected.items():
        assert torch.equal(found[site], tensor)


def test_an_input_by_keyword_is_changed(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, expected = observe(model, IDS, None, [LEAVES])[LEAVES], doubled(model)
    assert not torch.equal(usual, expected)
    calls = call_by_name(model, monkeypatch)
    assert torch.equal(doubled(model), expected)
    assert calls


def test_hooks_are_gone_afterwards(model: LanguageModel) -> None:
    usual = observe(model, IDS, None, [LEAVES])[LEAVES]
    with pytest.raises(ZeroDivisionError), changing(model, {ENTERS: lambda found: found / (1 // 0)}, IDS.shape):
        observe(model, IDS, None, [LEAVES])
    assert torch.equal(observe(model, IDS, None, [LEAVES])[LEAVES], usual)
