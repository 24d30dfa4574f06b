"""What an SAE says of a text given now, and of the directions in its weights."""
