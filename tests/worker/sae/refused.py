"""Model folders that are to be refused, by planning and by loading alike."""

from pathlib import Path

import pytest
import torch

from actstore_storage.errors import BadRequest
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import describe_model, load_model


def refusal(folder: Path) -> BadRequest:
    """Why the model in the folder is MODEL_UNSUPPORTED, which is the same whether weights are wanted or not."""
    source = ModelCatalog((folder.parent,)).find_model(folder.name)
    with pytest.raises(BadRequest) as planned:
        describe_model(source)
    with pytest.raises(BadRequest) as refused:
        load_model(source, device=torch.device("cpu"))
    assert planned.value.message == refused.value.message
    assert refused.value.reason == "MODEL_UNSUPPORTED"
    assert refused.value.details["field"] == "model"
    return refused.value
