"""Activation patching: replaces activations of one run by those of another, and measures the effect on the answer.

`inputs/` check the parts of a request: prompts and spans, rows of a stored run, features of an SAE, receivers. `plan`
makes a grid of cells and refuses invalid requests. `replacing` says what replaces a cell's activations. `kernels/` run
the model with cells patched. `legs` runs the grid for one pair in one direction, and `sweep` for all pairs.
`estimates/` estimate effects by gradients and select the cells to compute, `audit` recomputes some cells, and `direct`
is direct logit attribution. `serving/` lets many sweeps share the models of a process, and `updates` are the messages
between processes about a sweep. This package uses neither Ray nor gRPC.
"""
