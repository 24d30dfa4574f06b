"""BERT as an encoder, without its heads for masked tokens and next sentences, and without the pooler."""

import re

from transformers import AutoModel

from actstore_worker.models.families.family import Family, Refusal, Tap, head_taps

_HEADS = head_taps("attention.self", "query", "key", "value")
BERT = Family(
    "bert",
    trunk="",
    layers="encoder.layer",
    # Post-LN, with TransformerLens's names: the sums before the LayerNorms are resid_mid and resid_post.
    taps={
        "resid_pre": Tap("", is_input=True),
        **_HEADS,
        "pattern": Tap("attention.self", item=1),
        "z": Tap("attention.output.dense", is_input=True),
        "attn_out": Tap("attention.output.dense"),
        "resid_mid": Tap("attention.output.LayerNorm", is_input=True),
        "mlp_out": Tap("output.dense"),
        "resid_post": Tap("output.LayerNorm", is_input=True),
        "normalized_resid_post": Tap(""),
    },
    middle_norm="attention.output.LayerNorm",
    causal=False,
    auto_class=AutoModel,
    optional_tensors=re.compile(r"cls\..+|(bert\.)?pooler\..+"),
    refusals=(Refusal("is_decoder", lambda _, decoder: decoder, "actstore supports BERT models as encoders only"),),
)
