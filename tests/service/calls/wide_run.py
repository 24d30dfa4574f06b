"""A run whose rows are more than a connection takes without its client: what a client does not read, waits."""

import numpy as np

from actstore_storage.bucket import Bucket
from actstore_storage.runs.opening import create_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows
from benchmarks.parts.synthetic_runs import synthetic_record

WIDE, WIDE_SITE = "wide", "resid_post.0"
_SEQUENCES, _POSITIONS, _D_MODEL = 16, 128, 256


def write_wide_run(bucket: Bucket) -> None:
    """2 MiB of rows in one shard."""
    record = synthetic_record(
        WIDE,
        sequences=_SEQUENCES,
        sequence_tokens=_POSITIONS,
        d_model=_D_MODEL,
        dense_sites=(WIDE_SITE,),
        sequences_per_shard=_SEQUENCES,
        sequences_per_batch=_SEQUENCES,
    )
    create_run(bucket, record)
    rows = np.arange(_SEQUENCES * _POSITIONS)
    sequence, position = rows // _POSITIONS, (rows % _POSITIONS).astype(np.int32)
    tokens = TokenRows(sequence, position, sequence, np.zeros(len(rows), np.int32), (position == 0).astype(np.uint8))
    with ShardWriter(bucket, record, 0, "attempt") as writer:
        writer.add(tokens, {WIDE_SITE: np.random.default_rng(0).random((len(rows), _D_MODEL), np.float32)}, {}, {})
        assert writer.commit()
