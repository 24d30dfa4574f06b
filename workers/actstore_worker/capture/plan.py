"""Plans a capture: finds and checks everything that a request names, before any forward pass."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actstore_api.records.capture import CaptureSpecification, DatasetFiles, DatasetReference
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import check_name
from actstore_storage.errors import BadRequest
from actstore_storage.format.norm_columns import L2, NormColumn, columns_beside, statistics_names
from actstore_storage.format.products import NORM_SKETCHES
from actstore_storage.format.records import fields_in_common
from actstore_storage.format.sites import HEAD_KINDS, Site, expand_sites, parse_site
from actstore_storage.format.specification import RunRecord, SaeRecord, Specification
from actstore_storage.runs.document_sources import DocumentSources
from actstore_worker.capture.planning.estimates import (
    bytes_by_product,
    check_run_bytes,
    dense_rows_known,
    dense_rows_of,
    forward_flops_per_token,
    sketch_bytes,
)
from actstore_worker.capture.planning.options import StoreOptions, checked_options, document_query
from actstore_worker.capture.run_plan import PlanSettings, RunPlan
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.documents import DocumentQuery, documents
from actstore_worker.datasets.files import Dataset
from actstore_worker.datasets.limits import NEVER, Reading
from actstore_worker.datasets.noted_sources import NotedSources
from actstore_worker.datasets.sequences import SequenceShape, TokenisedDataset, TokenSequences, tokenise
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.loading import describe_model
from actstore_worker.models.model import ModelDescription
from actstore_worker.models.prompts import prepends_bos
from actstore_worker.provenance import code_version
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.fit import check_fit
from actstore_worker.sae.formats.loading import load_sae

SEQUENCES_PER_BATCH_MAX = 1024
SEQUENCES_PER_SHARD_MAX = 1 << 20
_HASH_DIGITS_IN_NAME = 8
# The number of unread files of a dataset that are listed.
FILES_TOLD = 20
# So many that their bytes are to each other as those of any number, whatever is rounded.
_MANY_TOKENS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Plan(RunPlan):
    """A planned capture. `sequences` are all sequences of the run, and `sources` those of their documents; a worker
    gets those of its shard.
    """

    sequences: TokenSequences
    model_source: ModelSource
    model: ModelDescription
    sources: DocumentSources

    @property
    def model_to_register(self) -> ModelDescription:
        return self.model

    @property
    def flops_per_token(self) -> float:
        return forward_flops_per_token(self.record, self.model_source, self.model)

    def task(self, shard: int, attempt: str) -> ShardTask:
        own = self.shard_sequences(shard), attempt, self.shard_sources(shard)
        return ShardTask(self.record, self.model_source, self.sae_paths, shard, *own)

    def shard_sequences(self, shard: int) -> TokenSequences:
        held = self.record.shard_sequences(shard)
        return self.sequences.slice(held.start, held.stop)

    def shard_sources(self, shard: int) -> DocumentSources:
        return self.sources.take(self.shard_sequences(shard).documents)


def plan_capture(
    request: CaptureSpecification, catalog: ModelCatalog, settings: PlanSettings, stop: threading.Event = NEVER
) -> Plan:
    """Returns what a capture will run and store. It reads the documents, and writes nothing.

    Errors: BadRequest or NotThere with field, value and what is allowed; ActstoreError CANCELLED soon after `stop` is
    set.
    """
    reading = Reading(settings.datasets.limits, stop)
    asked = _look_up(request, catalog, settings, reading)
    noted = NotedSources()
    with _naming_dataset(asked.dataset_reference.name):
        found = noted.passing(documents(asked.dataset, asked.query, reading))
        tokenised = tokenise(
            asked.model,
            found,
            asked.shape,
            settings.run_tokens_max,
            check=reading.check,
            check_tokens=_bytes_check(asked, settings.run_bytes_max),
        )
    sizes, per_shard = _sizes(asked, tokenised.sequences, settings)
    specification = _specification(asked, tokenised, per_shard)
    files = asked.dataset
    return Plan(
        record=_record(asked, specification, tokenised.sequences, settings.device),
        sae_paths=asked.sae_paths,
        saes=asked.saes,
        bytes_by_product=sizes,
        documents=tokenised.documents,
        documents_with_bos=tokenised.documents_with_bos,
        dataset_files=DatasetFiles(len(files.files), len(files.not_read), files.not_read[:FILES_TOLD]),
        sequences=tokenised.sequences,
        model_source=asked.source,
        model=asked.model,
        sources=noted.of(tokenised.sequences.documents),
    )


@dataclass(frozen=True)
class _Asked:
    """Everything that a request names, found and checked together, with every default filled in. No document is read
    yet.
    """

    request: CaptureSpecification
    model_reference: ModelReference
    dataset_reference: DatasetReference
    sequences_per_batch: int
    query: DocumentQuery
    dataset: Dataset
    source: ModelSource
    model: ModelDescription
    shape: SequenceShape
    dense: tuple[Site, ...]
    norms: tuple[Site, ...]
    sae_paths: Mapping[str, Path]
    saes: tuple[SparseAutoencoder, ...]
    options: StoreOptions

    @property
    def widths(self) -> dict[str, int]:
        """Elements per row, for each dense site."""
        return {str(site): self.model.site_width(site, self.shape.context_length) for site in self.dense}

    @property
    def norm_columns(self) -> list[NormColumn]:
        sites = tuple(map(str, self.norms))
        return [*(NormColumn(L2, site) for site in self.norms), *columns_beside(sites, self.model.kinds)]

    def bytes_by_product(self, tokens: int, dense_rows: int) -> dict[str, int]:
        return bytes_by_product(self.options, self.widths, len(self.norm_columns), self.saes, tokens, dense_rows)


def _look_up(request: CaptureSpecification, catalog: ModelCatalog, settings: PlanSettings, reading: Reading) -> _Asked:
    if request.run:
        check_name(request.run, "run")
    batch = _count(
        request.sequences_per_batch, settings.sequences_per_batch, SEQUENCES_PER_BATCH_MAX, "sequences_per_batch"
    )
    if request.sequences_per_shard is not None:  # What its bytes allow is known once the dataset is read.
        _count(request.sequences_per_shard, 0, SEQUENCES_PER_SHARD_MAX, "sequences_per_shard")
    named_model, named_dataset = _named(request)
    query = document_query(named_dataset)
    dataset = settings.datasets.find(named_dataset.name)
    source = catalog.find_model(named_model.name, named_model.revision)
    model = describe_model(source, reading.check)
    shape = _shape(request, named_dataset.max_tokens, model)
    dense, norms = _sites(request, model)
    sae_paths = {name: catalog.find_sae(name) for name in dict.fromkeys(request.saes)}
    saes = tuple(_fitting_sae(path, name, model, reading) for name, path in sae_paths.items())
    options = checked_options(request, model, dense, saes)
    return _Asked(
        request=request,
        model_reference=named_model,
        dataset_reference=named_dataset,
        sequences_per_batch=batch,
        query=query,
        dataset=dataset,
        source=source,
        model=model,
        shape=shape,
        dense=dense,
        norms=norms,
        sae_paths=sae_paths,
        saes=saes,
        options=options,
    )


def _named(request: CaptureSpecification) -> tuple[ModelReference, DatasetReference]:
    """Errors: BadRequest if model or dataset is missing: only encoding another run's rows needs neither."""
    if request.model is None or request.dataset is None:
        field = "model" if request.model is None else "dataset"
        raise BadRequest(f"{field} is required", field=field, value="", allowed="a name")
    return request.model, request.dataset


def _sizes(asked: _Asked, sequences: TokenSequences, settings: PlanSettings) -> tuple[dict[str, int], int]:
    """Estimates the bytes of each product, and the number of sequences in a shard."""
    columns = asked.norm_columns
    sizes = asked.bytes_by_product(len(sequences.tokens), dense_rows_of(asked.options.positions, sequences))
    wanted = asked.request.sequences_per_shard
    per_shard = _sequences_per_shard(wanted, sequences, sizes, asked.sequences_per_batch, settings)
    if columns:
        shards, names = -(-len(sequences) // per_shard), len(statistics_names(columns))
        sizes[NORM_SKETCHES] = sketch_bytes(names, sequences, asked.model.bos_id, shards)
    check_run_bytes(sizes, settings.run_bytes_max)
    return sizes, per_shard


def _specification(asked: _Asked, tokenised: TokenisedDataset, per_shard: int) -> Specification:
    model, dense = asked.model, tuple(map(str, asked.dense))
    filled_in = (fields_in_common(part, Specification) for part in (asked.query, asked.shape, asked.options))
    return Specification(
        model=asked.model_reference.name,
        model_revision=asked.model_reference.revision,
        weights_sha256=model.weights_sha256,
        config_sha256=model.config_sha256,
        attention_implementation=_attention(model, dense),
        tokenizer_sha256=model.tokenizer_sha256,
        dataset=asked.dataset_reference.name,
        dataset_sha256=tokenised.sha256,
        dense_sites=dense,
        norm_sites=tuple(map(str, asked.norms)),
        saes=tuple(SaeRecord(sae.name, sae.sha256, str(sae.site), sae.d_sae) for sae in asked.saes),
        sequences_per_shard=per_shard,
        sequences_per_batch=asked.sequences_per_batch,
        marked_special=model.marks_special,
        **{name: value for part in filled_in for name, value in part.items()},
    )


def default_run_name(specification: Specification) -> str:
    """`<model>-<dataset>-<hash>`, with characters that are allowed in names."""
    words = f"{specification.model}-{Path(specification.dataset).stem}"
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-._")[:100]
    return check_name(f"{words}-{specification.sha256[:_HASH_DIGITS_IN_NAME]}", "run")


def _record(asked: _Asked, specification: Specification, sequences: TokenSequences, device: str) -> RunRecord:
    model = asked.model
    return RunRecord(
        run=asked.request.run or default_run_name(specification),
        specification=specification,
        specification_sha256=specification.sha256,
        sequences_total=len(sequences),
        tokens_total=len(sequences.tokens),
        layer_count=model.layer_count,
        d_model=model.d_model,
        attention_implementation=specification.attention_implementation,
        device=device,
        code_version=code_version(),
        model_config=model.model_config,
        document_sources=True,
        dense_widths={site: width for site, width in asked.widths.items() if width != model.d_model},
    )


def _attention(model: ModelDescription, dense_sites: Iterable[str]) -> str:
    """Only eager attention exposes attention weights."""
    shows_weights = any(parse_site(site).kind == "pattern" for site in dense_sites)
    return "eager" if shows_weights else model.attention_implementation


def _count(asked: int | None, default: int, limit: int, field: str) -> int:
    if asked is None:
        return default
    if asked < 1:
        raise BadRequest(f"{field} is {asked}", field=field, value=asked, allowed=f"1..{limit}")
    if asked > limit:
        raise _limit(field, asked, limit)
    return asked


def _shape(request: CaptureSpecification, max_tokens: int | None, model: ModelDescription) -> SequenceShape:
    prepend = prepends_bos(model, request.prepend_bos)
    length = model.context_length if request.context_length is None else request.context_length
    shortest = 1 + int(prepend) + int(prepend and model.end_id is not None)
    if length > model.context_length:
        raise _limit("context_length", length, model.context_length, model.context_reason)
    if length < shortest:
        allowed = f"{shortest}..{model.context_length}"
        raise BadRequest(f"context_length is {length}", field="context_length", value=length, allowed=allowed)
    return SequenceShape(length, prepend, max_tokens)


def _sites(request: CaptureSpecification, model: ModelDescription) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Dense sites may be in heads; norms are of kinds of the residual stream."""
    kinds = (*model.kinds, *model.inner_kinds, *HEAD_KINDS)
    dense = expand_sites(request.dense_sites, kinds, model.layer_count, model.head_counts)
    norms = expand_sites(request.norm_sites or model.kinds, model.kinds, model.layer_count)
    return dense, norms


def _fitting_sae(path: Path, name: str, model: ModelDescription, reading: Reading) -> SparseAutoencoder:
    reading.check()
    sae = load_sae(path, name)
    check_fit(sae, model)
    return sae


def _sequences_per_shard(
    asked: int | None, sequences: TokenSequences, sizes: Mapping[str, int], batch: int, settings: PlanSettings
) -> int:
    """As requested, or whole batches. The bytes of a shard are those of an average sequence times their number."""
    sequence_bytes = sum(sizes.values()) / len(sequences)
    by_bytes = max(1, int(settings.shard_bytes_target / sequence_bytes))
    by_share = -(-len(sequences) // settings.shards_target)
    batches = max(1, -(-min(by_bytes, by_share) // batch))
    most = SEQUENCES_PER_SHARD_MAX
    if len(sequences) * sequence_bytes > settings.shard_bytes_max:
        most = min(most, max(1, int(settings.shard_bytes_max / sequence_bytes)))
    return _count(asked, min(batches * batch, most), most, "sequences_per_shard")


def _bytes_check(asked: _Asked, run_bytes_max: int) -> Callable[[int], None]:
    """Returns what refuses a run once the tokens that were read would store too much, before all others are read."""

    def sizes(tokens: int) -> dict[str, int]:
        return asked.bytes_by_product(tokens, dense_rows_known(asked.options.positions, tokens) or 0)

    most = run_bytes_max * _MANY_TOKENS / sum(sizes(_MANY_TOKENS).values())

    def check(tokens: int) -> None:
        if tokens > most:
            check_run_bytes(sizes(tokens), run_bytes_max, "at least")

    return check


@contextmanager
def _naming_dataset(name: str) -> Iterator[None]:
    """Adds the dataset's name to the error for a dataset without tokens."""
    try:
        yield
    except BadRequest as error:
        if error.reason != "DATASET_EMPTY":
            raise
        message = f"dataset {name!r}: {error.message}"
        allowed = error.details.get("allowed")
        raise BadRequest(message, reason="DATASET_EMPTY", field="dataset", value=name, allowed=allowed) from error


def _limit(field: str, value: int, limit: int, why: str = "") -> BadRequest:
    return BadRequest(
        f"{field} is {value}; the limit is {limit}{why}",
        reason="LIMIT_EXCEEDED",
        field=field,
        value=value,
        allowed=f"at most {limit}",
    )
