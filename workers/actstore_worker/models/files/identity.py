"""The keys of a configuration that affect a model's numbers. They are part of the model's identity, and hashed.

A key in DECIDES does. A key in DECIDES_NOTHING may have any value. A test fails when transformers adds a key to a
family's class that is in neither table.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from actstore_storage.format.records import canonical_json
from actstore_worker.models.families import FAMILIES

DECIDES = frozenset({
    # sizes
    "vocab_size", "type_vocab_size", "hidden_size", "n_embd", "word_embed_proj_dim", "intermediate_size", "ffn_dim",
    "n_inner", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "n_positions",
    # attention and positions
    "rope_parameters", "position_embedding", "sliding_window", "use_sliding_window", "max_window_layers",
    "layer_types", "attn_logit_softcapping", "query_pre_attn_scalar", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "use_bidirectional_attention", "is_decoder",
    "add_cross_attention", "is_encoder_decoder",
    # the rest of a layer, and what comes after the last
    "hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "layer_norm_elementwise_affine", "_remove_final_layer_norm", "do_layer_norm_before", "use_parallel_residual",
    "attention_bias", "mlp_bias", "enable_bias", "tie_word_embeddings", "final_logit_softcapping",
})  # fmt: skip

# Token ids are taken from the tokenizer. Those that end a generated text affect its length, but no numbers.
DECIDES_NOTHING = frozenset({
    # origin, and the version that wrote it
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "model_type",
    "auto_map", "tokenizer_class", "dtype", "torch_dtype", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "xla_device", "language", "transformers.js_config", "unsloth_version", "unsloth_fixed", "is_llama_config",
    "custom_pipelines", "license", "_pre_quantization_dtype", "quantization_aware_training", "model_name",
    "base_model", "_diffusers_version",
    # ids
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id",
    "decoder_start_token_id", "end_token_id", "pad_token", "bos_token", "eos_token", "unk_token",
    # training: initial weights, dropout, how much memory it took
    "initializer_range", "initializer_factor", "init_std", "gradient_checkpointing", "pretraining_tp",
    "neftune_noise_alpha", "attention_dropout", "hidden_dropout", "classifier_dropout",
    "attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout_prob", "attn_pdrop", "embd_pdrop",
    "resid_pdrop", "dropout", "activation_dropout", "layerdrop", "embedding_dropout", "tensor_parallel_degree",
    "tensor_parallel_size", "sequence_parallel",
    # what a call asks for
    "use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "output_past",
    "chunk_size_feed_forward", "tie_last_hidden_states", "cache_implementation", "cache_config",
    "keys_to_ignore_at_inference", "ignore_keys_at_rope_validation",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "_flash_attn_2_enabled", "use_flash_attn", "use_flash_attention",
    "_experts_implementation", "experts_implementation",
    # heads for other tasks
    "id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type", "predict_special_tokens", "sentence_transformers",
    # intended length of a text, prefixes, and padding
    "n_ctx", "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "model_max_length", "prefix",
    "padding_side", "do_lower_case",
})  # fmt: skip


def identity_of(config: Any, said: Collection[str]) -> dict[str, Any]:
    """Returns the options that affect numbers, with every default filled in, under transformers' names. Options that
    are off are left out.

    `said` are the keys of config.json. A key that a later version of transformers adds is included only if the file has
    it, so that an unchanged model keeps its identity.
    """
    there = {field.name for field in fields(config)}.union(*(family.undeclared for family in FAMILIES.values()))
    counts = (DECIDES | {*said} - DECIDES_NOTHING) & there
    found = {name: value for name, value in config.to_dict().items() if name in counts}
    identity: dict[str, Any] = _plain({"model_type": config.model_type, **found})
    return identity


def identity_sha256(identity: Mapping[str, Any]) -> str:
    """The hash of `identity_of`, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def _plain(value: Any) -> Any:
    """Removes None, and writes numbers in one way, whether the file has 10000 or 10000.0."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
