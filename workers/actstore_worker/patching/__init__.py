"""Activation patching: replace one activation of a run by another run's, and see what becomes of the answer.

`inputs/` are what a sweep is asked of: prompts and their spans, rows of a stored run, features of an SAE, receivers.
`plan` makes a grid of cells of them and refuses what makes no sense, `replacing` says what takes a cell's place,
`kernels/` run the model with cells patched, `legs` takes one pair in one direction through the grid, and `sweep` all of
them. `estimates/` say what patches would do, and choose by that what is computed, `audit` computes some of it again,
and `direct` says what each component writes straight into the answer. `serving/` has many sweeps share the models of a
process, and `updates` are what processes tell each other of one. Knows nothing of Ray or of the wire.
"""
