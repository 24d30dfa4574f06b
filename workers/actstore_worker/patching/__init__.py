"""Activation patching: replace one activation of a run by another run's, and see what becomes of the answer.

`plan` turns a request into cells and refuses what makes no sense, `kernels` run the model with cells patched, `sweep`
puts the two together. `attribution` estimates what patches would do, `screening` chooses by that what is computed, and
`direct` says what each component writes straight into the answer. Knows nothing of Ray or of the wire.
"""
