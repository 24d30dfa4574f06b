"""Makes the record of a synthetic run, which benchmarks write into their own buckets."""

from typing import Any

from actstore_storage.format.specification import RunRecord, Specification

_NO_HASH = "0" * 64


def synthetic_record(
    run: str, *, sequences: int, sequence_tokens: int, d_model: int, layers: int = 1, **stored: Any
) -> RunRecord:
    """Every sequence has `sequence_tokens`. `stored` has the specification's sequences_per_shard, sequences_per_batch
    and fields that differ from the defaults here: float32, and no dense sites, norms or SAEs.
    """
    fields: dict[str, Any] = {"dense_sites": (), "norm_sites": (), "saes": (), "dtype": "float32", **stored}
    specification = Specification(
        model="model",
        model_revision="",
        weights_sha256=_NO_HASH,
        tokenizer_sha256=_NO_HASH,
        dataset="random",
        dataset_sha256=_NO_HASH,
        text_field="text",
        max_tokens=None,
        context_length=sequence_tokens,
        prepend_bos=True,
        **fields,
    )
    return RunRecord(
        run=run,
        specification=specification,
        specification_sha256=specification.sha256,
        sequences_total=sequences,
        tokens_total=sequences * sequence_tokens,
        layer_count=layers,
        d_model=d_model,
        attention_implementation="none",
        device="cpu",
        code_version="benchmark",
    )
