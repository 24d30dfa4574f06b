"""Runs models: capture and patching on Ray. The only home of torch, transformers and Ray."""
