"""A language model and a text given now: attention, lenses, steering and ablation, answered live."""
