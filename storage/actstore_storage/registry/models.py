"""Records of models that workers of this store have loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from actstore_storage.bucket import Bucket
from actstore_storage.format.keys import MODELS, model_key
from actstore_storage.format.records import seal
from actstore_storage.format.specification import Specification
from actstore_storage.registry.registered import read_all_registered
from actstore_storage.registry.token_texts import store_token_texts


@dataclass(frozen=True)
class ModelRecord:
    """A model that workers loaded. `family` is the model_type of transformers. An empty `revision` means the model
    itself.

    `block` says how a layer's parts are connected: pre_ln, post_ln or parallel. It and `config_sha256` are empty in
    records of early versions.
    """

    name: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    family: str
    layer_count: int
    d_model: int
    head_count: int
    vocabulary_size: int
    context_length: int
    block: str = ""
    config_sha256: str = ""

    @property
    def key(self) -> str:
        return model_key(self.name, self.revision)


def register_model(
    bucket: Bucket, record: ModelRecord, token_texts: Sequence[str], token_parts: Mapping[int, bytes] | None = None
) -> None:
    """Registers a model and its tokens' texts, as in `TokenTexts`; replaces a model with that name."""
    store_token_texts(bucket, record.tokenizer_sha256, token_texts, token_parts)
    bucket.put(record.key, seal(asdict(record)))


def find_registered_model(bucket: Bucket, name: str, revision: str) -> ModelRecord | None:
    """Reads the record of a model; None if nothing is registered under the name."""
    return next(iter(read_all_registered(bucket, [model_key(name, revision)], ModelRecord)), None)


def block_of(bucket: Bucket, asked: Specification) -> str:
    """How the blocks of a run's model are wired: pre_ln, post_ln or parallel; empty if unknown."""
    model = find_registered_model(bucket, asked.model, asked.model_revision)
    # The name may now belong to another model with another architecture.
    return model.block if model is not None and asked.made_by(model.weights_sha256, model.config_sha256) else ""


def list_models(bucket: Bucket) -> list[ModelRecord]:
    """Reads every model's record, in order of name, then revision."""
    found = read_all_registered(bucket, bucket.keys(MODELS), ModelRecord)
    return sorted(found, key=lambda model: (model.name, model.revision))
