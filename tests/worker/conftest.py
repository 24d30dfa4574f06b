"""Models that tests of sweeps share; nothing changes them."""

import pytest
import torch

from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from tests.made_models.random_models import save_model

SWEPT = ("neox", "gpt2", "llama-grouped")


@pytest.fixture(scope="session")
def swept_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    folder = tmp_path_factory.mktemp("models")
    for kind in SWEPT:
        save_model(folder / kind, kind)
    catalog = ModelCatalog((folder,))
    return {kind: load_model(catalog.find_model(kind), device=torch.device("cpu")) for kind in SWEPT}
