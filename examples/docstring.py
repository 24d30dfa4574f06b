"""The docstring experiment: patches every head in both directions with six corrupt prompts, and compares the results.

Start a stack first, in another shell:

    actstore up --models models --datasets "$(python -c 'import os; print(os.path.dirname(os.__file__))')"

    python -m examples.docstring                     # which argument does a docstring name next?
    python -m examples.docstring --style call        # the same of a call

docs/tutorials/docstring.md explains the results for the bundled model.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import actstore
from examples.docstring_prompts import STYLES, DocstringPrompt, docstring_prompt

# The smallest effect that is reported, as a fraction of the difference between base and source run. Half of it counts
# as no effect.
SHOWN_EFFECT = 0.2
# In logits. Effects are fractions of what a corruption changes, and fractions of a smaller change are meaningless.
GAP_MIN = 0.5
TOP_HEADS = 6
JOINT_HEADS = 3
FIGURE_INCHES, DOTS_PER_INCH = (9, 6), 130

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """logit(correct) - max logit(wrong) of a clean and of a corrupt prompt, over all wrong names. `wrong` is the
    strongest one on the corrupt prompt, and `gap` is how far the logit difference between the two answers falls.
    """

    clean: float
    corrupt: float
    wrong: str
    gap: float


# By corruption.
MeasuredPrompt = tuple[DocstringPrompt, dict[str, Measured]]


def measure(lab: actstore.Lab, model: str, prompt: DocstringPrompt, corruption: str) -> Measured:
    """Runs a sweep of one cell to get its baselines: one pair of answers for each wrong name."""
    count = len(prompt.wrong)
    answers = [(prompt.answer, wrong) for wrong in prompt.wrong]
    sweep = lab.patch(
        model, clean=[prompt.clean] * count, corrupt=[prompt.corrupt[corruption]] * count, answers=answers,
        sites="resid_pre", layers=[0], positions="last", directions="noise", progress=False,
    )  # fmt: skip
    found: dict[str, list[float]] = {"clean": [], "corrupt": []}
    for row in sweep.baselines:
        found[row["prompt"]].append(row["logit_difference"])
    strongest = int(np.argmin(found["corrupt"]))
    least = found["corrupt"][strongest]
    return Measured(min(found["clean"]), least, prompt.wrong[strongest], found["clean"][strongest] - least)


def measure_all(lab: actstore.Lab, model: str, prompts: Sequence[DocstringPrompt]) -> list[MeasuredPrompt]:
    """Leaves out prompts for which two of the names do not distinguish clean and corrupt. There are few, by chance."""
    found = []
    for prompt in prompts:
        try:
            found.append((prompt, {name: measure(lab, model, prompt, name) for name in prompt.corrupt}))
        except actstore.BadRequest as error:
            if error.reason != "PROMPTS_INDISTINGUISHABLE":
                raise
    return found


def print_baselines(measured: Sequence[MeasuredPrompt]) -> list[str]:
    """Returns the corruptions that lower the metric by GAP_MIN on average."""
    print(f"\nlogit(correct) - max logit(wrong), mean over {len(measured)} prompts, and the share above 0")
    first = measured[0][1]
    clean = [next(iter(each.values())).clean for _, each in measured]
    print(f"  {'clean':18s} {np.mean(clean):6.2f}  {np.mean(np.array(clean) > 0):5.0%}")
    moving = []
    for name in first:
        corrupt = [each[name].corrupt for _, each in measured]
        moves = np.mean(clean) - np.mean(corrupt) >= GAP_MIN
        note = "" if moves else f"  (moves it by less than {GAP_MIN}: not patched)"
        print(f"  {name:18s} {np.mean(corrupt):6.2f}  {np.mean(np.array(corrupt) > 0):5.0%}{note}")
        moving += [name] if moves else []
    return moving


def roles(sweep: actstore.Sweep, prompt: DocstringPrompt, style: str) -> dict[int, str]:
    """Names the role of each position. All prompts have the same number of tokens, so the first one's roles apply to
    all.
    """
    texts = [text.strip() for text in sweep.tokens["clean"]]
    second = "doc" if style == "rest" else "call"
    found = {}
    for letter, name in zip("ABC", prompt.matching, strict=True):
        places = [position for position, text in enumerate(texts) if text == name.strip()]
        found.update({position: f"{letter}_{kind}" for position, kind in zip(places, ("def", second), strict=False)})
        if letter == "B":
            found[places[0] + 1] = "comma_B"
    return found | {len(texts) - 1: "END"}


def top_heads(sweep: actstore.Sweep, count: int) -> list[Row]:
    """Ranks heads by the larger effect of both directions."""
    rows = sweep.directions(SHOWN_EFFECT)
    return sorted(rows, key=lambda row: -max(abs(row["denoise"]), abs(row["noise"])))[:count]


def print_heads(name: str, sweep: actstore.Sweep, names: Mapping[int, str]) -> None:
    print(f"\n{name}: the strongest heads (mean over pairs; AND, OR and so on at effects of {SHOWN_EFFECT})")
    for row in top_heads(sweep, TOP_HEADS):
        place = names.get(row["position"]) or repr(sweep.tokens["clean"][row["position"]])
        print(f"  {row['layer']}.{row['head']} at {place:14s} {_directions(row)}")
    audit = sweep.audit
    print(
        f"  audit: {audit.audited_cells} cells by the whole model, largest error {audit.largest_error:.1e} in a logit; "
        f"noise floor {audit.noise_floor:.1e}"
    )


def _directions(row: Row) -> str:
    return f"denoise {row['denoise']:6.2f}  noise {row['noise']:6.2f}  {row['looks']}"


def joint_cells(sweep: actstore.Sweep, names: Mapping[int, str]) -> dict[str, list[tuple[str, int]]]:
    """Returns each subset of the strongest cells."""
    cells = top_heads(sweep, JOINT_HEADS)
    found = {}
    for size in range(1, len(cells) + 1):
        for chosen in combinations(cells, size):
            label = " + ".join(
                f"{row['layer']}.{row['head']} at {names.get(row['position'], row['position'])}" for row in chosen
            )
            found[label] = [(f"z.{row['layer']}.{row['head']}", row["position"]) for row in chosen]
    return found


def draw(comparison: actstore.CorruptionComparison, title: str) -> Figure:
    """Draws one panel per direction, with one row per head and one column per corruption: the effect at the position
    where it is largest.
    """
    figure = Figure(FIGURE_INCHES, layout="constrained")
    frame = comparison.to_pandas()
    names = list(comparison.names)
    strongest = frame.groupby(["direction", "layer", "head"])[names].agg(_furthest)
    limit = float(strongest.abs().to_numpy().max())
    for ax, direction in zip(figure.subplots(1, 2), ("denoise", "noise"), strict=True):
        panel = strongest.loc[direction]
        image = ax.imshow(panel.to_numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        ax.set_yticks(range(len(panel)), [f"{layer}.{head}" for layer, head in panel.index], fontsize=8)
        ax.set_title(direction)
    figure.colorbar(image, ax=figure.axes, label="normalized logit difference: 0 base run, 1 source run")
    figure.suptitle(title, fontsize=10)
    return figure


def _furthest(effects: pd.Series) -> float:
    return float(max(effects, key=abs))


def sweeps_over(
    lab: actstore.Lab,
    model: str,
    chosen: Sequence[MeasuredPrompt],
    names: Sequence[str],
    **cells: Unpack[actstore.PatchOptions],
) -> Iterator[tuple[str, actstore.Sweep]]:
    """Runs the sweeps. The corrupt answer is the wrong name that is strongest on the corrupt prompt."""
    for name in names:
        yield (
            name,
            lab.patch(
                model,
                clean=[prompt.clean for prompt, _ in chosen],
                corrupt=[prompt.corrupt[name] for prompt, _ in chosen],
                answers=[(prompt.answer, measured[name].wrong) for prompt, measured in chosen],
                **cells,
            ),
        )


def run(lab: actstore.Lab, model: str, style: str, prompt_count: int, pair_count: int, folder: Path) -> None:
    prompts = [docstring_prompt(seed, style) for seed in range(prompt_count)]
    print(prompts[0].clean, "<-", prompts[0].answer)
    measured = measure_all(lab, model, prompts)
    moving = print_baselines(measured)
    moved = [each for each in measured if all(each[1][name].gap >= GAP_MIN for name in moving)]
    if len(moving) < 2 or not moved:
        raise SystemExit("fewer than two of the corruptions move this model's answer: there is nothing to compare")
    chosen = moved[:pair_count]
    print(
        f"\n{len(moved)} of {len(prompts)} prompts are moved by {GAP_MIN} by each of these; {len(chosen)} are patched"
    )
    sweeps = dict(sweeps_over(lab, model, chosen, moving, sites="z"))
    names = roles(next(iter(sweeps.values())), chosen[0][0], style)
    for name, sweep in sweeps.items():
        print_heads(name, sweep, names)
        ((_, joint),) = sweeps_over(lab, model, chosen, [name], joint=joint_cells(sweep, names))
        for row in joint.directions(SHOWN_EFFECT):
            print(f"  {row['name']:60s} {_directions(row)}")
        sweep.plot().savefig(folder / f"docstring-{style}-{name}.png", dpi=DOTS_PER_INCH)
    comparison = actstore.compare_corruptions(sweeps, threshold=SHOWN_EFFECT)
    print(f"\n{comparison}")
    draw(comparison, f"{model}, style {style}: heads under {len(sweeps)} corruptions").savefig(
        folder / f"docstring-{style}.png", dpi=DOTS_PER_INCH
    )
    print(f"plots: {folder}/docstring-{style}*.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pystdlib", help="a model that the workers have")
    parser.add_argument("--style", default=STYLES[0], choices=STYLES)
    parser.add_argument("--prompts", type=int, default=32, help="how many are measured")
    parser.add_argument("--pairs", type=int, default=8, help="how many of them are patched")
    parser.add_argument("--folder", type=Path, default=Path(), help="of the plots")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with actstore.connect() as lab:
        run(lab, given.model, given.style, given.prompts, given.pairs, given.folder)


if __name__ == "__main__":
    main()
