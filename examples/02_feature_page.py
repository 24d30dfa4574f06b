"""What makes an SAE feature fire? Statistics, top examples in context, and a page for the browser.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
"""

from pathlib import Path

import actstore

SAE = "pystdlib-resid_post.1"
# In prose, the word after a form of "to be". Others: 212, the word glued to `get` in a function's name; 285, the first
# word of a test's name.
FEATURE = 303

with actstore.connect() as lab:
    run = lab.capture("pystdlib", dataset="asyncio", max_tokens=20_000, saes=[SAE]).wait()
    page = run.feature(SAE, FEATURE).page(k=10)
    print(page)
    # In a notebook, `page` alone shows this.
    Path("feature.html").write_text(page._repr_html_(), encoding="utf-8")
    print("page: feature.html")
