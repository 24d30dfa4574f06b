"""How fast does the residual stream grow? Prints the norms of every layer and the fitted rate, and draws a plot.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

with actstore.connect() as lab:
    # Real text: the source of the standard library's asyncio. Running the same capture again returns the same run.
    run = lab.capture("pystdlib", dataset="asyncio", max_tokens=20_000).wait()
    profile = run.norms(["resid_pre", "attn_out", "mlp_out", "resid_post"])
    print(profile)  # BOS is an attention sink with a massive norm, so it is left out unless you pass exclude=().
    growth = run.fit_growth("resid_post")
    print(growth)
    profile.plot(growth=growth).figure.savefig("norm_growth.png", dpi=150)
    print("plot: norm_growth.png")
