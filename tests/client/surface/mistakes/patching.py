"""Plausible mistakes in calls about replaced activations and about a text given now. Nothing here is run.

A line that ends in the mark is a mistake, which mypy finds; every other line is right, which it finds too.
"""

from typing import Unpack

import numpy as np

import actstore
from actstore import Lab, PatchedSae, Receivers, Screen, StoredRows, StoredText, Sweep


def right_patches(lab: Lab, run: actstore.Run) -> None:
    """Each way to say a thing."""
    lab.patch("m", clean="a", corrupt="b", answers=(" a", " b"))
    lab.patch("m", clean=["a", "b"], corrupt=["c", "d"], answers=[(" a", " b"), (" c", " d")])
    lab.patch("m", clean=[1, 2], corrupt=[1, 3], answers=(2, 3), positions=range(3), layers={1, 2})
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), source="mean", stored=run, sae="s", receivers="logits")
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), stored=StoredRows(run, exclude=(), seed=7), screen=100)
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), sae=PatchedSae("s", features=[1], sae_error="patched"))
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), receivers=Receivers(["q.9.6"], path_mlps="frozen"))
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), screen=Screen(100, grad_drop=True), directions="noise")
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), spans={"who": ("a", range(2)), "end": slice(1, 2)})
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), joint={"both": [("z.1.0", 3)]}, positions="last")
    lab.estimate_patch("m", clean="a", corrupt="b", answers=(1, 2), source="zero", directions=("noise", "denoise"))
    lab.patch("m", clean=np.array([1, 2]), corrupt=[np.array([1, 3])], answers=(2, 3))
    _on_loops(lab, sites=["z"], screen=100)


def _on_loops(lab: Lab, **options: Unpack[actstore.PatchOptions]) -> Sweep:
    """What a script wraps around a call has the call's types."""
    return lab.patch("m", clean="a", corrupt="b", answers=(1, 2), **options)


def right_questions(lab: Lab) -> None:
    """About a text."""
    lab.attention("m", lab.tokens("m", "text").ids, layers=range(1, 3), prepend_bos=False).top("entropy", k=3)
    lab.steer("m", "text", direction=np.ones(4), site="resid_post.1", strength=1, max_new_tokens=4, positions="prompt")
    lab.ablate("m", ["a", "b"], ablation="mean", stored=StoredText("run", n_tokens=9), seed=1)
    lab.logit_lens("m", "text", site="resid_mid", target=7).plot(column="kl")


def wrong_patches(lab: Lab) -> None:
    """Words, names and kinds of arguments."""
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), source="median")  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), source=None)  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), source=["zero", "mean"])  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), positions="first")  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), directions="up")  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), directions=["denoise", "up"])  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), layers=3)  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), layer=[3])  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), bos=False)  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), source_run="run")  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), stored=StoredText("run"))  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), features=[3])  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), screen="100")  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), spans=["a"])  # wrong
    lab.patch("m", clean="a", corrupt="b", answers=(1, 2), joint={"both": [3]})  # wrong
    lab.patch("m", clean="a", corrupt="b")  # wrong
    _on_loops(lab, screens=100)  # wrong
    _on_loops(lab, source="nothing")  # wrong
    lab.estimate_patch("m", claen="a", corrupt="b", answers=(1, 2))  # wrong
    lab.estimate_patch("m", clean="a", corrupt="b", answers=(1, 2), windows=2)  # wrong
    lab.estimate_patch("m", clean="a", corrupt="b", answers=(1, 2), progress=False)  # wrong
    PatchedSae("s", sae_error="lost")  # wrong
    PatchedSae("s", error="kept")  # wrong
    Receivers("logits", path_mlps="held")  # wrong
    Screen(100, graddrop=True)  # wrong
    StoredRows("run", n_tokens=3)  # wrong
    StoredText("run", seed=3)  # wrong
    lab.compare_tokens("m", clean="a", corrupt=["b"])  # wrong


def wrong_questions(lab: Lab) -> None:
    """Words, names and kinds of arguments of questions about a text."""
    lab.attention("m", "text", layer=[1])  # wrong
    lab.attention("m", "text", heads=1)  # wrong
    lab.induction_scores("m", tokens=20)  # wrong
    lab.logit_lens("m", "text", site="resid_psot")  # wrong
    lab.logit_lens("m", "text", n=3)  # wrong
    lab.steer("m", "text", sae="s", feature=1, mode="scale")  # wrong
    lab.steer("m", "text", sae="s", feature=1, unit="metres")  # wrong
    lab.steer("m", "text", sae="s", feature=1, positions="last")  # wrong
    lab.steer("m", "text", sae="s", feature=1, tokens=10)  # wrong
    lab.ablate("m", "text", ablation="median")  # wrong
    lab.ablate("m", "text", ablation=["mean", "zero"])  # wrong
    lab.ablate("m", "text", with_="mean")  # wrong
    lab.ablate("m", "text", ablation="mean", stored=StoredRows("run"))  # wrong
    lab.weights("m", stored=3)  # wrong


def wrong_readings(lab: Lab, sweep: Sweep) -> None:
    """Of answers."""
    sweep.top(n=3)  # wrong
    sweep.top(3, direction="up")  # wrong
    lab.attention("m", "text").top("entropie")  # wrong
    lab.attention("m", "text").plot(measure="induktion")  # wrong
    lab.induction_scores("m").top("entropy")  # wrong
    lab.logit_lens("m", "text").plot(column="rank")  # wrong
    lab.steer("m", "text", sae="s", feature=1).written("both")  # wrong
    actstore.compare_corruptions({}, tokens=None)  # wrong
