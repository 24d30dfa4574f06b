"""Two prompts' unpatched runs, with every site of the model, for tests of what patches make of them."""

import torch

from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.kernels.recording import Recording, record


def every_site(model: LanguageModel) -> list[Site]:
    return [Site(layer, kind) for kind in (*model.kinds, *HEAD_KINDS) for layer in range(model.layer_count)]


def two_runs(model: LanguageModel, length: int) -> tuple[Recording, Recording]:
    """Of prompts that differ from their first token to their last."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 200, (length,), generator=generator).tolist() for _ in range(2)]
    base, source = (record(model, prompt, every_site(model)) for prompt in prompts)
    return base, source
