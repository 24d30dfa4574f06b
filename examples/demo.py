"""A complete tour on real input: `make demo`, or `python -m examples.demo [--s3] [--folder DIR]`.

Starts the local stack, captures the bundled model over held-out source files, asks about norms, features and patching,
writes the plots, and stops.
"""

import argparse
import json
import time
from pathlib import Path

import actstore
from models import corpus

MODELS = Path(__file__).parent.parent / "models"
MODEL = "pystdlib"
SAE = "pystdlib-resid_post.1"
DENSE_SITE = "resid_post.1"
TOKENS = 250_000
# The tokens on which each feature fires, found by looking at its examples.
FEATURES = {
    303: "in prose, the word after a form of `to be`",
    212: "the word glued to `get` in a function's name",
    285: "the first word of a test's name",
}
# Which of two loop variables is printed? Only one token differs, so the activations that carry it to the end show an
# effect.
CLEAN = "for index, value in enumerate(values):\n    print(index,"
CORRUPT = "for index, item in enumerate(values):\n    print(index,"
ANSWERS = (" value", " item")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--s3", action="store_true", help="keep the store in a SeaweedFS that the demo starts")
    parser.add_argument("--folder", type=Path, default=Path(".actstore/demo"), help="where store, text and plots go")
    arguments = parser.parse_args()
    started = time.monotonic()
    datasets = write_text(arguments.folder / "datasets")
    store = arguments.folder / ("s3" if arguments.s3 else "store")
    heading("Starting the local stack: Ray workers, gateway, service" + (", SeaweedFS" if arguments.s3 else ""))
    with actstore.LocalStack(
        store=store,
        model_folders=[MODELS],
        dataset_folders=[datasets],
        s3=arguments.s3,
        state_folder=arguments.folder,
    ) as stack:
        lab = stack.lab
        plots = arguments.folder / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        run = capture(lab)
        show_growth(run, plots)
        show_features(run, plots)
        show_patching(lab, plots)
    heading(f"Done in {time.monotonic() - started:.0f} s. The stack is stopped; what it captured stays.")
    print(f"plots           {plots.resolve()}/*.png")
    if not arguments.s3:
        print(f"the same store  actstore.connect({str(store)!r}).run({run.name!r})")
    print("a running stack `make up`, then actstore.connect()")


def write_text(folder: Path) -> Path:
    """Writes the standard library's files that the bundled model was not trained on, as one JSONL dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stdlib.jsonl").open("w", encoding="utf-8") as lines:
        for text in corpus.texts(held_out=True):
            lines.write(json.dumps({"text": text}) + "\n")
    return folder


def heading(text: str) -> None:
    print(f"\n\N{BLACK RIGHT-POINTING TRIANGLE} {text}", flush=True)


def capture(lab: actstore.Lab) -> actstore.Run:
    heading(f"Capturing {TOKENS:,} tokens of Python source: all norms, {DENSE_SITE} whole, the features of {SAE}")
    run = lab.capture(MODEL, dataset="stdlib.jsonl", dense_sites=[DENSE_SITE], saes=[SAE], max_tokens=TOKENS).wait()
    print(run)
    return run


def show_growth(run: actstore.Run, plots: Path) -> None:
    heading("How does the norm of the residual stream grow?")
    profile = run.norms()
    growth = run.fit_growth("resid_post")
    print(profile)
    print(growth)
    save(profile.plot(growth=growth), plots / "norm_profile.png")
    save(growth.plot(), plots / "norm_growth.png")


def show_features(run: actstore.Run, plots: Path) -> None:
    for index, description in FEATURES.items():
        heading(f"Feature {index}: {description}")
        page = run.feature(SAE, index).page(k=6)
        print(page)
        save(page.plot(), plots / f"feature_{index}.png")


def show_patching(lab: actstore.Lab, plots: Path) -> None:
    heading("What changes when one activation is replaced, in both directions?")
    sweep = lab.patch(MODEL, clean=CLEAN, corrupt=CORRUPT, answers=ANSWERS)
    print(sweep)
    save(sweep.plot(), plots / "patching.png")


def save(drawn: object, path: Path) -> None:
    figure = getattr(drawn, "figure", drawn)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
