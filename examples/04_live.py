"""Asks a model live questions about a text: attention, logit lens, steering, and ablation of each site and head.

docs/explanation/live.md explains the results.

Start a stack first, in another shell:

    actstore up --models models
"""

import sys
from pathlib import Path

import actstore

MODEL, SAE, FEATURE = "pystdlib", "pystdlib-resid_post.1", 41
LOOP = "for index, value in enumerate(values):\n    print(index,"
# The second line of each text is predictable from the first.
TWICE = [
    f"{line}\n{line}\n" for line in ("alpha, beta, gamma, delta, omega, sigma", "red, green, blue, black, white, grey")
]

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
with actstore.connect() as lab:
    scores = lab.induction_scores(MODEL)
    print(scores, scores.top("induction", 5), scores.top("previous_token", 1), sep="\n")

    attention = lab.attention(MODEL, LOOP, patterns=True)
    print(attention.top("first_token", 3))
    attention.plot_pattern(3, 1).figure.savefig(folder / "live-attention.png", dpi=80)

    lens = lab.logit_lens(MODEL, LOOP, target=" value")
    print(lens)
    last = len(lens.tokens) - 1
    print({row["layer"]: (row["target_rank"], round(row["kl"], 2)) for row in lens if row["position"] == last})
    lens.plot().figure.savefig(folder / "live-lens.png", dpi=110)

    along = {"sae": SAE, "feature": FEATURE}
    print(lab.steer(MODEL, "def read(self,", strength=0.3, positions="prompt", max_new_tokens=10, **along))
    for way in ({"mode": "set", "strength": 0}, {"mode": "project_out"}, {"strength": 1}):
        print(lab.steer(MODEL, "    if isinstance(value,", max_new_tokens=10, **way, **along))

    for ablation in ("zero", "mean", "resample"):
        found = lab.ablate(MODEL, TWICE, ablation=ablation)
        print(ablation, found.loss, found.top(6))
    found.plot().figure.savefig(folder / "live-ablation.png", dpi=110)
