"""Which activations carry the answer? Patches one at a time, in both directions, and plots the effect on the answer.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

# Only the loop variable differs, so the activations that carry its name to the end show an effect.
CLEAN = "for index, value in enumerate(values):\n    print(index,"
CORRUPT = "for index, item in enumerate(values):\n    print(index,"

with actstore.connect() as lab:
    sweep = lab.patch("pystdlib", clean=CLEAN, corrupt=CORRUPT, answers=(" value", " item"))
    print(sweep)
    frame = sweep.to_pandas()  # One row per cell, to group and plot as you like.
    print(frame.groupby(["direction", "site"])["normalized"].max())
    sweep.plot().savefig("patching.png", dpi=150)
    print("plot: patching.png")
