"""The provenance of live answers. If nothing stored was read, there is no run, snapshot or shard."""

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
    """The versions of actstore and of the libraries that compute.

    They are looked up once, because each time takes milliseconds, and a process keeps the code that it imported.
    """
    return {name: version(name) for name in ("actstore", "torch", "transformers")}


def code_version() -> str:
    """The versions of actstore and of the libraries that compute, as text. They are not part of a run's identity: a new
    library may round differently, and a running capture continues with it; its commits record the versions.
    """
    actstore, *libraries = versions().items()
    return f"{actstore[1]} ({', '.join(' '.join(library) for library in libraries)})"


def live_provenance(
    model: LanguageModel | None, sae: SparseAutoencoder | None = None, attention: str = ""
) -> Provenance:
    """The provenance of a live answer. Without a model: of an answer from an SAE's weights only, in the float32 that
    they are read in. `attention` is the implementation, if it was not the model's default one.
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
    """The provenance of an answer that read stored text: from that run, computed like the live answer."""
    names = ("dtype", "attention_implementation", "device", "code_version", "config_sha256")
    how = {name: getattr(live, name) for name in names}
    return replace(snapshot.provenance(), sae_sha256=live.sae_sha256, **how)
