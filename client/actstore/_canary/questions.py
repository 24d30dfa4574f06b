"""The canary's questions, through the public client: a capture, a feature's examples, norms, and a sweep both ways."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from actstore._lab import Lab
from actstore._runs.run import Run

# What is asked about: the bundled model and SAE, and the text of deploy/canary.
MODEL, SAE, DATASET = "pystdlib", "pystdlib-resid_post.1", "actstore-canary.jsonl"
CONTEXT, TOP = 128, 5
SITE, LAYERS = "resid_pre", (1, 2)
# Clean, corrupt, and their answers. With BOS, five tokens each: ten cells over two layers.
PROMPTS = ("for name in list", "for path in list", ("(", ":"))
SWEEPS = ("denoise", "noise")


def answers(lab: Lab, feature: int, run: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yields each check's name with what was answered. A run is captured once a day; all else is asked anew each time.

    Raises:
        ActstoreError: A question was refused.
    """
    captured = _captured(lab, run)
    yield "capture", {"complete": captured.complete, "tokens": captured.tokens_committed}
    norms = captured.norms("resid_post", exclude="bos", quantiles=())
    yield "norms", norms.table["mean"].to_pylist()
    examples = captured.features(SAE)[feature].top(TOP)
    yield "top_features", examples.table["activation"].to_pylist()
    yield from _swept(lab).items()


def _captured(lab: Lab, run: str | None) -> Run:
    if run is not None:
        return lab.run(run)
    name = f"canary-{datetime.datetime.now(datetime.UTC):%Y%m%d}"
    capture = lab.capture(
        MODEL, dataset=DATASET, run=name, saes=[SAE], context_length=CONTEXT, prepend_bos=True, sink_ratio=None
    )
    return capture.wait(progress=False, check_saes=False)


def _swept(lab: Lab) -> Mapping[str, list[float]]:
    clean, corrupt, both = PROMPTS
    sweep = lab.patch(
        MODEL,
        clean=clean,
        corrupt=corrupt,
        answers=both,
        sites=SITE,
        layers=LAYERS,
        prepend_bos=True,
        fresh=True,
        progress=False,
    )
    rows = sweep.table.sort_by([("layer", "ascending"), ("position", "ascending")]).to_pylist()
    return {direction: [row["normalized"] for row in rows if row["direction"] == direction] for direction in SWEEPS}
