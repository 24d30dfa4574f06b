"""How does the residual stream grow over depth, and how over training? Also compares with the norms of the weights.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

STEPS = (64, 128, 256, 512, 1024, 2048)
TEXT = "def test_join(self):\n    self.assertEqual(path.join('a', 'b'), 'a/b')"

with actstore.connect() as lab:
    # The same text through the bundled model at several training steps, each a separate run.
    revisions = [f"step{step}" for step in STEPS]
    checkpoints = lab.capture_revisions("pystdlib", revisions, dataset="asyncio", max_tokens=20_000).wait()
    print("\nOver depth, at each point of training:\n")
    over_depth = checkpoints.fit_growth("layer")
    for growth in over_depth:
        print(growth, "\n")
    print("Over training, at each layer:\n")
    over_training = checkpoints.fit_growth("checkpoint")
    for growth in over_training:
        print(growth, "\n")
    print("Is one a factor of the other?\n")
    separability = checkpoints.separability()
    print(separability)
    print("\nWere they weights alone?\n")
    weights = lab.weights("pystdlib", revision="step2048", text=TEXT, stored=checkpoints.runs[-1])
    print(weights)
    profile = checkpoints.norms("resid_post", quantiles=())
    actstore.plot_growth(over_depth).figure.savefig("norms-depth.png", dpi=110)
    actstore.plot_growth(over_depth, ratios=True).figure.savefig("norms-ratios.png", dpi=110)
    actstore.plot_growth(over_training).figure.savefig("norms-training.png", dpi=110)
    profile.plot_heatmap().figure.savefig("norms-both.png", dpi=110)
    separability.plot().figure.savefig("norms-separability.png", dpi=110)
    checkpoints.runs[-1].norms("resid_post", by="position").plot().figure.savefig("norms-position.png", dpi=110)
    checkpoints.runs[-1].norms("resid_post", histogram=60).plot_histogram().figure.savefig(
        "norms-histogram.png", dpi=110
    )
    checkpoints.runs[-1].token_norms(range(5, 6), "resid_post").plot().figure.savefig("norms-tokens.png", dpi=110)
    weights.plot_sublayers(sublayer="mlp").figure.savefig("norms-mlp.png", dpi=110)
    print("plots: norms-depth, -ratios, -training, -both, -separability, -position, -histogram, -tokens, -mlp.png")
