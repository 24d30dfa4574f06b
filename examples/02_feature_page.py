"""What makes an SAE feature fire? Statistics, top examples in context, and a page for the browser.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

from pathlib import Path

import actstore

SAE = "pystdlib-resid_post.1"
# Rare enough to mean something, common enough to have examples.
DENSITY_MIN, DENSITY_MAX = 0.001, 0.02

with actstore.connect() as lab:
    run = lab.capture("pystdlib", dataset="asyncio", max_tokens=20_000, saes=[SAE]).wait()
    features = (run.feature(SAE, index) for index in range(run.saes[0].d_sae))
    feature = next(each for each in features if DENSITY_MIN < each.statistics().density < DENSITY_MAX)
    page = feature.page(k=10)
    print(page)
    # In a notebook, `page` alone shows this.
    Path("feature.html").write_text(page._repr_html_(), encoding="utf-8")
    print("page: feature.html")
