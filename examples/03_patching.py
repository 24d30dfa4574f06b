"""Which activations carry the answer? Replace one at a time, in both directions, and plot how far the answer moves.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

# Only the loop variable differs, so whatever carries its name to the end shows.
CLEAN = "for index, value in enumerate(values):\n    print(index,"
CORRUPT = "for index, item in enumerate(values):\n    print(index,"

with actstore.connect() as lab:
    sweep = lab.patch("pystdlib", clean=CLEAN, corrupt=CORRUPT, answers=(" value", " item"))
    print(sweep)
    frame = sweep.to_pandas()  # a row a cell: yours to group and plot
    print(frame.groupby(["direction", "site"])["normalized"].max())
    sweep.plot().savefig("patching.png", dpi=150)
    print("plot: patching.png")
