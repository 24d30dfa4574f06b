"""How does the residual stream grow over depth, and how over training? Kept apart, with the weights beside them.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

STEPS = (64, 128, 256, 512, 1024, 2048)
TEXT = "def test_join(self):\n    self.assertEqual(path.join('a', 'b'), 'a/b')"

with actstore.connect() as lab:
    # The same text through the bundled model at several points of its training, each a run of its own.
    runs = [lab.capture("pystdlib", dataset="asyncio", max_tokens=20_000, revision=f"step{n}").wait() for n in STEPS]
    print("\nOver depth, at each point of training:\n")
    over_depth = [lab.fit_growth(run) for run in runs]
    for growth in over_depth:
        print(growth, "\n")
    print("Over training, at each layer:\n")
    over_training = [lab.fit_growth(runs, "checkpoint", site=f"resid_post.{layer}") for layer in range(4)]
    for growth in over_training:
        print(growth, "\n")
    print("Were they weights alone?\n")
    weights = lab.weights("pystdlib", text=TEXT)
    print(weights)
    actstore.plot_growth(over_depth).figure.savefig("norms-depth.png", dpi=110)
    actstore.plot_growth(over_depth, ratios=True).figure.savefig("norms-ratios.png", dpi=110)
    actstore.plot_growth(over_training).figure.savefig("norms-training.png", dpi=110)
    weights.plot_sublayers(sublayer="mlp").figure.savefig("norms-mlp.png", dpi=110)
    print("plots: norms-depth.png, norms-ratios.png, norms-training.png, norms-mlp.png")
