"""From a request for a capture to its run: everything is looked up and checked here, before any forward pass."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from actstore_storage.bucket import check_name
from actstore_storage.errors import BadRequest
from actstore_storage.sites import Site, expand_sites
from actstore_storage.specification import DTYPES, RunRecord, SaeRecord, Specification
from actstore_worker.catalogue import ModelCatalogue, ModelSource
from actstore_worker.model import ModelDescription, describe_model
from actstore_worker.sae import SparseAutoencoder, TopKSae, check_fit, load_sae
from actstore_worker.sequences import SequenceShape, TokenSequences, tokenise
from actstore_worker.sources import documents, find_dataset

SEQUENCES_PER_BATCH_MAX = 1024
SEQUENCES_PER_SHARD_MAX = 1 << 20
# Bytes of a token's row in tokens.parquet, of one norm, and of one nonzero in the two orders in which it is stored.
_TOKEN_BYTES, _NORM_BYTES, _NONZERO_BYTES = 25, 4, 24
# Where the architecture does not fix how many features are on.
_NONZEROS_GUESS = 64
_HASH_DIGITS_IN_NAME = 8


@dataclass(frozen=True)
class CaptureRequest:
    """What a caller asks for, as in actstore_api's CaptureSpecification; None and empty mean the same there."""

    model: str
    dataset: str
    run: str = ""
    model_revision: str = ""
    text_field: str = ""
    max_tokens: int | None = None
    context_length: int | None = None
    # None: where the tokenizer has a BOS token.
    prepend_bos: bool | None = None
    dense_sites: tuple[str, ...] = ()
    norm_sites: tuple[str, ...] = ()
    saes: tuple[str, ...] = ()
    dtype: str = ""
    sequences_per_shard: int | None = None
    sequences_per_batch: int | None = None


@dataclass(frozen=True)
class PlanSettings:
    dataset_folders: tuple[Path, ...]
    # Where the capture workers run models: cpu or cuda.
    device: str = "cpu"
    sequences_per_batch: int = 16
    # A shard is about this large: small enough to be done again after a crash, large enough for an object store.
    shard_bytes_target: int = 64 << 20
    # A worker holds a shard's nonzeros in memory, and does all of a shard again after a crash.
    shard_bytes_max: int = 1 << 30
    # A small run is cut this far all the same, so that workers share it and a reader sees it grow.
    shards_target: int = 8


@dataclass(frozen=True)
class Plan:
    """`sequences` are all of the run's; a worker needs `sequences.select(record.shard_sequences(shard))`."""

    record: RunRecord
    sequences: TokenSequences
    model_source: ModelSource
    model: ModelDescription
    sae_paths: dict[str, Path]
    saes: tuple[SparseAutoencoder, ...]


def plan_capture(request: CaptureRequest, catalogue: ModelCatalogue, settings: PlanSettings) -> Plan:
    """Errors: BadRequest or NotThere with field, value and what is allowed."""
    if request.run:
        check_name(request.run, "run")
    dtype = _dtype(request.dtype)
    batch = _count(
        request.sequences_per_batch, settings.sequences_per_batch, SEQUENCES_PER_BATCH_MAX, "sequences_per_batch"
    )
    dataset_path = find_dataset(request.dataset, settings.dataset_folders)
    source = catalogue.find_model(request.model, request.model_revision)
    model = describe_model(source)
    shape = _shape(request, model)
    dense, norms = _sites(request, model)
    sae_paths = {name: catalogue.find_sae(name) for name in dict.fromkeys(request.saes)}
    saes = tuple(_fitting_sae(path, name, model) for name, path in sae_paths.items())
    text_field = request.text_field or "text"
    with _naming_dataset(request.dataset):
        tokenised = tokenise(model, documents(dataset_path, text_field), shape)
    sequences = tokenised.sequences
    token_bytes = _bytes_per_token(model.d_model * DTYPES[dtype], len(dense), len(norms), saes)
    per_shard = _sequences_per_shard(request.sequences_per_shard, sequences, token_bytes, batch, settings)
    specification = Specification(
        model=request.model,
        model_revision=request.model_revision,
        weights_sha256=model.weights_sha256,
        tokenizer_sha256=model.tokenizer_sha256,
        dataset=request.dataset,
        dataset_sha256=tokenised.sha256,
        text_field=text_field,
        max_tokens=request.max_tokens,
        context_length=shape.context_length,
        prepend_bos=shape.prepend_bos,
        dense_sites=tuple(map(str, dense)),
        norm_sites=tuple(map(str, norms)),
        saes=tuple(SaeRecord(sae.name, sae.sha256, str(sae.site), sae.d_sae) for sae in saes),
        dtype=dtype,
        sequences_per_shard=per_shard,
        sequences_per_batch=batch,
    )
    record = _record(request, specification, model, sequences, settings.device)
    return Plan(record, sequences, source, model, sae_paths, saes)


def default_run_name(specification: Specification) -> str:
    """`<model>-<dataset>-<hash>`, of characters that a name may have."""
    words = f"{specification.model}-{Path(specification.dataset).stem}"
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-._")[:100]
    return check_name(f"{words}-{specification.sha256[:_HASH_DIGITS_IN_NAME]}", "run")


def _record(
    request: CaptureRequest,
    specification: Specification,
    model: ModelDescription,
    sequences: TokenSequences,
    device: str,
) -> RunRecord:
    return RunRecord(
        run=request.run or default_run_name(specification),
        specification=specification,
        specification_sha256=specification.sha256,
        sequences_total=len(sequences),
        tokens_total=len(sequences.tokens),
        layer_count=model.layer_count,
        d_model=model.d_model,
        attention_implementation=model.attention_implementation,
        device=device,
        code_version=version("actstore"),
    )


def _dtype(asked: str) -> str:
    dtype = asked or "float32"
    if dtype not in DTYPES:
        raise BadRequest(f"dtype {dtype!r} is not known", field="dtype", value=dtype, allowed=DTYPES)
    return dtype


def _count(asked: int | None, default: int, limit: int, field: str) -> int:
    if asked is None:
        return default
    if asked < 1:
        raise BadRequest(f"{field} is {asked}", field=field, value=asked, allowed=f"1..{limit}")
    if asked > limit:
        raise _limit(field, asked, limit)
    return asked


def _shape(request: CaptureRequest, model: ModelDescription) -> SequenceShape:
    prepend = request.prepend_bos
    if prepend and model.bos_id is None:
        raise BadRequest(
            f"the tokenizer of {model.name!r} has no BOS token to prepend", field="bos", value="PREPEND", allowed="NONE"
        )
    prepend = model.bos_id is not None if prepend is None else prepend
    length = model.context_length if request.context_length is None else request.context_length
    shortest = 1 + int(prepend)
    if length > model.context_length:
        raise _limit("context_length", length, model.context_length)
    if length < shortest:
        allowed = f"{shortest}..{model.context_length}"
        raise BadRequest(f"context_length is {length}", field="context_length", value=length, allowed=allowed)
    return SequenceShape(length, prepend, request.max_tokens)


def _sites(request: CaptureRequest, model: ModelDescription) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    dense = expand_sites(request.dense_sites, model.kinds, model.layer_count)
    norms = expand_sites(request.norm_sites or model.kinds, model.kinds, model.layer_count)
    return dense, norms


def _fitting_sae(path: Path, name: str, model: ModelDescription) -> SparseAutoencoder:
    sae = load_sae(path, name)
    check_fit(sae, model)
    return sae


def _bytes_per_token(dense_bytes: int, dense_sites: int, norm_sites: int, saes: tuple[SparseAutoencoder, ...]) -> int:
    nonzeros = sum(sae.k if isinstance(sae, TopKSae) else _NONZEROS_GUESS for sae in saes)
    return _TOKEN_BYTES + dense_bytes * dense_sites + _NORM_BYTES * norm_sites + _NONZERO_BYTES * nonzeros


def _sequences_per_shard(
    asked: int | None, sequences: TokenSequences, token_bytes: int, batch: int, settings: PlanSettings
) -> int:
    """As asked, or whole batches; the bytes of a shard are those of an average sequence times their number."""
    sequence_bytes = token_bytes * len(sequences.tokens) / len(sequences)
    by_bytes = max(1, int(settings.shard_bytes_target / sequence_bytes))
    by_share = -(-len(sequences) // settings.shards_target)
    batches = max(1, -(-min(by_bytes, by_share) // batch))
    most = SEQUENCES_PER_SHARD_MAX
    if len(sequences) * sequence_bytes > settings.shard_bytes_max:
        most = min(most, max(1, int(settings.shard_bytes_max / sequence_bytes)))
    return _count(asked, min(batches * batch, most), most, "sequences_per_shard")


@contextmanager
def _naming_dataset(name: str) -> Iterator[None]:
    """Whoever finds that a dataset has no tokens does not know its name."""
    try:
        yield
    except BadRequest as error:
        if error.reason != "DATASET_EMPTY":
            raise
        message = f"dataset {name!r}: {error.message}"
        allowed = error.details.get("allowed")
        raise BadRequest(message, reason="DATASET_EMPTY", field="dataset", value=name, allowed=allowed) from error


def _limit(field: str, value: int, limit: int) -> BadRequest:
    return BadRequest(
        f"{field} is {value}; the limit is {limit}",
        reason="LIMIT_EXCEEDED",
        field=field,
        value=value,
        allowed=f"at most {limit}",
    )
