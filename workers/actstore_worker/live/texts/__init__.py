"""What a language model does with a text given now, and what its weights alone say."""
