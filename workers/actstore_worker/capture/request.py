"""What a caller asks of a capture."""

from dataclasses import dataclass, field

from actstore_storage.format.specification import Positions, RowFilter


@dataclass(frozen=True)
class CaptureRequest:
    """What a caller asks for, as in actstore_api's CaptureSpecification; None and empty mean the same there.

    With `rows_of`, `saes` are encoded over that run's rows, and nothing else need be given.
    """

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
    storage_dtype: str = ""
    widen_on_overflow: bool = False
    packing: bool = False
    positions: Positions = field(default_factory=Positions)
    tokens_field: str = ""
    row_filters: tuple[RowFilter, ...] = ()
    max_documents: int | None = None
    # None: the default, 10; 0: no token is looked at.
    sink_ratio: float | None = None
    rows_of: str = ""
    source_field: str = ""
