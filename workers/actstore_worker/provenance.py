"""Where a live answer comes from. Where nothing stored was read there is no run, snapshot or shard."""

from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import cast

from actstore_api.records.terms import Dtype, Provenance
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.models.model import LanguageModel
from actstore_worker.sae.autoencoder import SparseAutoencoder


@cache
def versions() -> dict[str, str]:
    """The versions of what computes: actstore, and the libraries whose kernels and models it runs. Looked up once, for
    each time takes milliseconds, and a process keeps the code that it imported.
    """
    return {name: version(name) for name in ("actstore", "torch", "transformers")}


def code_version() -> str:
    """Names the versions of what computes. They are no part of a run's identity: a new library may round otherwise, and
    a capture that is under way goes on with it; its commits say which versions made them.
    """
    actstore, *libraries = versions().items()
    return f"{actstore[1]} ({', '.join(' '.join(library) for library in libraries)})"


def live_provenance(
    model: LanguageModel | None, sae: SparseAutoencoder | None = None, attention: str = ""
) -> Provenance:
    """Without a model: of an answer that an SAE's weights alone give, in the float32 that they are read in. `attention`
    is what ran, where that is not what the model usually runs with.
    """
    return Provenance(
        model=model.name if model else "",
        model_revision=model.revision if model else "",
        weights_sha256=model.weights_sha256 if model else "",
        tokenizer_sha256=model.tokenizer_sha256 if model else "",
        sae_sha256={sae.name: sae.sha256} if sae else {},
        dtype=cast("Dtype", model.dtype) if model else "float32",
        attention_implementation=attention or (model.attention_implementation if model else ""),
        device=model.device.type if model else "",
        run="",
        specification_sha256="",
        snapshot="",
        shards_committed=0,
        shards_total=0,
        code_version=code_version(),
        config_sha256=model.config_sha256 if model else "",
    )


def with_snapshot(live: Provenance, snapshot: Snapshot) -> Provenance:
    """Of an answer that stored text was read for: from that run, computed as the live answer was."""
    names = ("dtype", "attention_implementation", "device", "code_version", "config_sha256")
    how = {name: getattr(live, name) for name in names}
    return replace(snapshot.provenance(), sae_sha256=live.sae_sha256, **how)
