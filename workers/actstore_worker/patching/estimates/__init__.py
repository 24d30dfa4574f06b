"""What patches would do, estimated by gradients, and which cells are computed because of it."""
