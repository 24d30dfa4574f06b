"""Patches with other sources: embeddings, features of an SAE, a stored mean, spans of other prompts; and path patching.

docs/explanation/patching.md has the results. Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

MODEL, SAE = "pystdlib", "pystdlib-resid_post.1"
CLEAN = "for index, value in enumerate(values):\n    print(index,"
CORRUPT = "for index, item in enumerate(values):\n    print(index,"
PAIR = {"clean": CLEAN, "corrupt": CORRUPT, "answers": (" value", " item")}
# Where the loop variable is, counting BOS.
VARIABLE = 4

with actstore.connect() as lab:
    print(lab.patch(MODEL, **PAIR, sites="embedding"))

    for error in ("kept", "dropped", "patched"):
        sweep = lab.patch(MODEL, **PAIR, sae=actstore.PatchedSae(SAE, sae_error=error), positions=[VARIABLE])
        frame = sweep.to_pandas()
        print(f"the SAE's error {error}:")
        print(frame[frame["name"].notna()].pivot_table("normalized", "name", "direction").round(2))

    run = lab.capture(MODEL, dataset="asyncio", dense_sites=["resid_pre"], max_tokens=20_000, run="means").wait()
    mean = lab.patch(MODEL, **PAIR, sites="resid_pre", source="mean", stored=run, positions=[VARIABLE])
    print(mean)

    longer = lab.patch(
        MODEL,
        clean=CLEAN,
        corrupt=CLEAN.replace(" value ", " next_item "),
        answers=(" value", " next"),
        spans={"variable": (" value", " next"), "end": "print(index,"},
        sites="resid_pre",
    )
    print(longer.directions())

    for mlps in ("recomputed", "frozen"):
        paths = lab.patch(
            MODEL,
            **PAIR,
            sites=["embedding", "mlp_out"],
            positions=[VARIABLE],
            receivers=actstore.Receivers(["v.3.0", "v.3.1", "v.3.2"], path_mlps=mlps),
        )
        print(f"MLPs on the way to three heads' values {mlps}:")
        print(paths.directions())
