"""Exports stored rows to other layouts: safetensors, and SAELens's cached activations."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import parse_site
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.runs.tokens import TOKEN_COLUMNS, document_sources

_SAFETENSORS_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
}
_ALIGNMENT_BYTES = 8
# Rows of one safetensors file.
PART_BYTES = 1 << 30


def export_safetensors(snapshot: Snapshot, site: str, folder: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Writes a site's rows as safetensors.

    Files are `<site>-00000.safetensors` and so on, each with `activation` [rows, width] and the tokens' columns [rows].
    If the run knows the sources of documents, `documents.parquet` has them: document, source, row.

    The files' metadata has the run, the snapshot's name, site, dtype and the hashes of weights and tokenizer. Errors:
    BadRequest for a folder that is not empty.
    """
    _check_empty(folder)
    provenance = snapshot.provenance()
    written: list[Path] = []
    for part in _parts(read_activations(snapshot, site), part_bytes):
        field = part.schema.field("activation")
        dtype, width = field.metadata[b"dtype"].decode(), int(field.metadata[b"d_model"])
        raw = b"".join(_bytes(chunk) for chunk in part["activation"].chunks)
        tensors = {"activation": _Tensor(_SAFETENSORS_TYPES[dtype], [part.num_rows, width], raw)}
        for name in TOKEN_COLUMNS:
            values = part[name].to_numpy()
            tensors[name] = _Tensor(_SAFETENSORS_TYPES[str(values.dtype)], [part.num_rows], values.tobytes())
        metadata = {
            "run": provenance.run,
            "snapshot": provenance.snapshot,
            "site": site,
            "dtype": dtype,
            "model": provenance.model,
            "weights_sha256": provenance.weights_sha256,
            "config_sha256": provenance.config_sha256,
            "tokenizer_sha256": provenance.tokenizer_sha256,
        }
        path = folder / f"{site}-{len(written):05d}.safetensors"
        _write_safetensors(path, tensors, metadata)
        written.append(path)
    if snapshot.record.document_sources:
        pq.write_table(document_sources(snapshot), folder / "documents.parquet")
    return written


def export_saelens(snapshot: Snapshot, site: str, folder: Path) -> int:
    """Writes a dataset that SAELens opens as `cached_activations_path`; returns the number of contexts in it.

    Columns `<TransformerLens's name of the site>` [context_length, d_model] float32 and `token_ids` [context_length].
    Sequences shorter than the context length do not fit into that layout and are left out. Errors: BadRequest for a run
    that stores some positions only or has no whole context, for a folder that is not empty, or without the library
    `datasets`.
    """
    datasets = _library("datasets")
    _check_empty(folder)
    if snapshot.record.specification.positions.kind != "all":
        raise BadRequest(
            "SAELens reads whole contexts, but this run stores rows of some positions only",
            field="positions",
            value=snapshot.record.specification.positions.kind,
            allowed="a run that stores all positions",
        )
    length, width = snapshot.record.specification.context_length, snapshot.record.dense_width(site)
    hook = _long_name(site)
    features = datasets.Features(
        {
            hook: datasets.Array2D(shape=(length, width), dtype="float32"),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=length),
        }
    )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = datasets.Dataset.from_generator(
            lambda: ({hook: matrix, "token_ids": ids} for ids, matrix in _contexts(snapshot, site, length)),
            features=features,
            cache_dir=scratch,
            fingerprint=snapshot.name[:16],  # otherwise it would hash this function and its closure
        )
        if not len(found):
            raise BadRequest(
                f"no sequence of run {snapshot.record.run} has the whole context of {length} tokens",
                field="context_length",
                value=length,
                allowed="a run with whole contexts",
            )
        found.save_to_disk(str(folder))
    return len(found)


def _contexts(snapshot: Snapshot, site: str, length: int) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]]:
    """Token ids [length] and vectors [length, width] of each sequence with this length; holds one shard at a time."""
    for commit in snapshot.commits:
        held = snapshot.record.shard_sequences(commit.shard)
        keep = TokenFilter(first_sequence=held.start, end_sequence=held.stop)
        batches = read_activations(snapshot, site, keep, ("sequence", "token"))
        table = pa.Table.from_batches(list(batches))
        metadata = table.schema.field("activation").metadata
        dtype, width = metadata[b"dtype"].decode(), int(metadata[b"d_model"])
        sequence, token = table["sequence"].to_numpy(), table["token"].to_numpy()
        starts = np.flatnonzero(np.diff(sequence, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(sequence)], strict=True):
            if stop - start == length:
                rows = table["activation"].slice(start, length)
                yield token[start:stop], dense_matrix(rows, dtype, width)


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: list[int]
    data: bytes


def _write_safetensors(path: Path, tensors: Mapping[str, _Tensor], metadata: Mapping[str, str]) -> None:
    """Writes the format directly: the header's length, the header, the bytes (huggingface/safetensors, "Format").

    The library's own writers take tensors of PyTorch, or of NumPy, which has no bfloat16.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT_BYTES)
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.data)


def _parts(batches: Iterator[pa.RecordBatch], part_bytes: int) -> Iterator[pa.Table]:
    gathered: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        gathered.append(batch)
        size += batch.nbytes
        if size >= part_bytes:
            yield pa.Table.from_batches(gathered)
            gathered, size = [], 0
    if gathered:
        yield pa.Table.from_batches(gathered)


def _bytes(rows: pa.Array) -> bytes:
    width = rows.type.byte_width
    return bytes(rows.buffers()[1][rows.offset * width : (rows.offset + len(rows)) * width])


def _long_name(site: str) -> str:
    found = parse_site(site)
    if found.head is not None:
        raise BadRequest(
            f"SAELens has no name for a single head: {site}", field="site", value=site, allowed=str(found.whole)
        )
    return found.long_name


def _check_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        message = f"folder {folder} is not empty"
        raise BadRequest(message, field="folder", value=folder, allowed="an empty folder, or one that does not exist")


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        message = f"this export needs the library {name}"
        raise BadRequest(message, field="layout", value=name, allowed=f"pip install {name}") from error
