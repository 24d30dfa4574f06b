"""What makes an SAE feature fire, and what does it write? Prints the pages of three features, and searches for others.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

SAE = "pystdlib-resid_post.1"
TOKENS = 150_000
# How much does the token id explain? token_r2 is 0.99, 0.35 and 0.02 over asyncio. The first feature detects a single
# word. The last one reads `isinstance`: without it the feature does not fire. It predicts a type: it promotes ` tuple`,
# ` str`, ` type`, ` bytes` and ` int`, and without the feature the right type loses 2 nats of log-probability.
FEATURES = {
    290: "the keyword `if`, wherever it stands",
    303: "in prose, the word after a form of `to be`",
    41: "the comma of `isinstance(value, `, after which a type comes",
}
# The second feature reads either of two tokens: without ` is`, or without ` being`, it falls by 7 of 35; without both
# it does not fire.
EITHER_OF_TWO = "# The task is being exec"
TEXT = "def test_join(self):\n    self.assertIsInstance(path.join('a', 'b'), str)"

with actstore.connect() as lab:
    run = lab.capture("pystdlib", dataset="asyncio", max_tokens=TOKENS, saes=[SAE]).wait()
    features = run.features(SAE)
    print(features.check())
    for index, meaning in FEATURES.items():
        page = features[index].page(k=6)
        print(f"\nFeature {index}: {meaning}. token_r2 {float(page.token_r2):.3f}\n")
        print(page)
        # In a notebook, `page` alone shows this.
        page.save_html(f"feature_{index}.html")
        print(f"page: feature_{index}.html")
    print(features[303].ablate_text(EITHER_OF_TWO, pairs=True))
    print("\nWhich features fire on a text given now, and seldom elsewhere?\n")
    print(features.by_text(TEXT, k=10))
    print("\nWhich are neither rare nor explained by their token?\n")
    print(features.search(density=(0.001, 0.02), token_r2=(None, 0.05), order="maximum", k=10))
