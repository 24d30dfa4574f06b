"""OPT."""

from actstore_worker.models.families.family import Family, Layout, head_taps, pre_ln_taps

OPT = Family(
    "opt",
    trunk="model",
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    position_embedding="model.decoder.embed_positions",
    taps=pre_ln_taps("self_attn", "self_attn.out_proj", "fc2", "final_layer_norm", head_taps("self_attn"), "fc1"),
    from_z=("self_attn.out_proj",),
    from_middle=("final_layer_norm", "fc1", "activation_fn", "fc2"),
    attention_norm="self_attn_layer_norm",
    layout=Layout(reads="fc1", writes="fc2", activation="activation_fn"),
    packs=False,  # transformers builds its attention mask without position ids.
    centrable=True,
)
