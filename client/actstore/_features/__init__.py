"""SAE features of a run: what stored activations and the SAE's weights say of one of them, and of all."""
