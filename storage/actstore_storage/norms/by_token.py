"""Reads norms of single tokens: only the row groups that contain the requested sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.errors import BadRequest
from actstore_storage.format.commit import Commit
from actstore_storage.format.norm_columns import token_values
from actstore_storage.format.products import NORMS, TOKENS
from actstore_storage.format.sites import Site
from actstore_storage.format.tokens import TOKEN_CLASSES, class_numbers
from actstore_storage.norms.rows import KeptTokens, columns_of
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_groups import groups_of_rows, read_between
from actstore_storage.registry.token_texts import token_texts
from actstore_storage.runs.snapshot import Snapshot

# Tokens times sites of one answer, which is one message: 4 bytes per value and about 40 for the token's columns, 11 MB
# in total.
TOKEN_NORM_VALUES_MAX = 250_000
_READ = ("sequence", "position", "document", "token", "flags")


@dataclass(frozen=True)
class _ShardTokens:
    """Tokens of a shard, and their indices among the shard's rows, ascending."""

    commit: Commit
    rows: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[np.integer]]


def token_norms(
    snapshot: Snapshot, quantity: str, sites: Sequence[Site], kept: KeptTokens, sequences: range
) -> pa.Table:
    """Reads the norms of single tokens. One row per token that is not excluded, in order of (sequence, position);
    sequences whose shard is not committed have none.

    Columns: sequence, position, document, token, text, token_class, and under each site's name the quantity as float32:
    infinite or NaN if the activation was.

    Errors: BadRequest LIMIT_EXCEEDED for more than TOKEN_NORM_VALUES_MAX values.
    """
    shards: list[_ShardTokens] = []
    # One after the other, so that a question that is too large ends before it has read much.
    for commit in snapshot.commits.of_shards(snapshot.shards_of(sequences)):
        shards.append(_shard_tokens(snapshot, commit, kept, sequences))
        _check_size(sum(len(shard.rows) for shard in shards), len(sites))
    texts = token_texts(snapshot.bucket, snapshot.record.specification.tokenizer_sha256).alone
    parts = [_shard_table(snapshot, shard, quantity, sites, texts) for shard in shards]
    return pa.concat_tables(parts).combine_chunks()


def _check_size(tokens: int, sites: int) -> None:
    if tokens * sites > TOKEN_NORM_VALUES_MAX:
        message = f"{tokens} tokens or more at {sites} sites are {tokens * sites} values; the limit is"
        raise BadRequest(
            f"{message} {TOKEN_NORM_VALUES_MAX}",
            reason="LIMIT_EXCEEDED",
            field="sequences",
            value=tokens * sites,
            allowed=f"1 to {TOKEN_NORM_VALUES_MAX} values, tokens times sites",
        )


def _shard_tokens(snapshot: Snapshot, commit: Commit, kept: KeptTokens, sequences: range) -> _ShardTokens:
    with open_product(snapshot.bucket, commit, TOKENS) as file:
        first_row, table = read_between(file, "sequence", sequences.start, sequences.stop - 1, _READ, {})
    columns = {name: table[name].to_numpy() for name in _READ}
    sequence = columns["sequence"]
    chosen = np.flatnonzero((sequence >= sequences.start) & (sequence < sequences.stop) & kept.mask(columns))
    return _ShardTokens(commit, first_row + chosen, {name: values[chosen] for name, values in columns.items()})


def _shard_table(
    snapshot: Snapshot, shard: _ShardTokens, quantity: str, sites: Sequence[Site], texts: Sequence[str]
) -> pa.Table:
    tokens = shard.columns
    found: dict[str, object] = {name: tokens[name] for name in ("sequence", "position", "document", "token")}
    found["text"] = pa.array([texts[token] for token in tokens["token"].tolist()], pa.string())
    classes = [TOKEN_CLASSES[place] for place in class_numbers(tokens["flags"]).tolist()]
    found["token_class"] = pa.array(classes, pa.string())
    stored, d_model = snapshot.record.specification.norm_sites, snapshot.record.d_model
    norms = _rows_of(snapshot, shard, columns_of(snapshot, quantity, sites))
    return pa.table(found | {str(site): token_values(quantity, site, norms, stored, d_model) for site in sites})


def _rows_of(snapshot: Snapshot, shard: _ShardTokens, names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    if not len(shard.rows):
        return {name: np.empty(0, np.float32) for name in names}
    with open_product(snapshot.bucket, shard.commit, NORMS) as file:
        groups, first_row = groups_of_rows(file, int(shard.rows[0]), int(shard.rows[-1]))
        table = file.read_row_groups(groups, columns=list(names), use_threads=False)
    return {name: table[name].to_numpy()[shard.rows - first_row] for name in names}
