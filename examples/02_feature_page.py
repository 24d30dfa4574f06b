"""What makes an SAE feature fire, what does it write, and is it more than the token itself? Three pages and a search.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

import actstore

SAE = "pystdlib-resid_post.1"
TOKENS = 150_000
# How much of each is the token itself? token_r2 is 0.99, 0.35 and 0.02 over asyncio. The first is a lookup of a word.
# The last reads `isinstance`, without which it is gone, and expects a type: it promotes ` tuple`, ` str`, ` type`,
# ` bytes` and ` int`, and where it is taken away, the right type is less probable by 2 nats.
FEATURES = {
    290: "the keyword `if`, wherever it stands",
    303: "in prose, the word after a form of `to be`",
    41: "the comma of `isinstance(value, `, after which a type comes",
}
# The second reads either of two: with ` is`, or ` being`, deleted it falls by 7 of 35; with both it is gone.
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
