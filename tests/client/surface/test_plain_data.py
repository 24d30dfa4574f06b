"""Answers are plain data: they can be copied, pickled and handed to libraries that read Arrow. Connections cannot."""

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import actstore
from actstore import Lab, Table
from tests.client.conftest import RUNS
from tests.client.lab.test_congruence import QUESTIONS
from tests.stored_run import FIRING, SAE

TEXT = "word6 word7 word9"
# Of other calls of a lab, which tests/client/patching and tests/client/models ask for.
ELSEWHERE = {
    "Attention", "CorruptionComparison", "InductionScores", "SiteAblation", "SteeredText", "Sweep", "SweptCells",
    "TextLens", "TextTokens", "TokenComparison",
}  # fmt: skip
LIVE: dict[str, Callable[[Lab], Any]] = {
    "encoded": lambda lab: lab.run("planted").features(SAE).encode_text(TEXT),
    "lens": lambda lab: lab.run("planted").feature(SAE, FIRING).logit_lens(3),
    "ablated text": lambda lab: lab.run("planted").feature(SAE, FIRING).ablate_text(TEXT),
    "ablated direction": lambda lab: lab.run("planted").feature(SAE, FIRING).ablate_direction(TEXT),
    "check": lambda lab: lab.run("planted").features(SAE).check(warn=False),
    "weights": lambda lab: lab.weights("tiny"),
    "page": lambda lab: lab.run("planted").feature(SAE, FIRING).page(3),
}
TRAINED: dict[str, Callable[[Lab], Any]] = {
    "checkpoints": lambda lab: lab.checkpoints(RUNS).norms(histogram=3),
    "separability": lambda lab: lab.checkpoints(RUNS).separability(),
    "growth": lambda lab: lab.checkpoints(RUNS).fit_growth("checkpoint", layers=[1], resamples=20)[0],
    "runs": lambda lab: lab.runs(),
    "verdict": lambda lab: lab.check(),
    "toy": lambda _: actstore.simulate_depth(n_steps=10),
    "number": lambda lab: lab.run("at-100").feature(SAE, FIRING).token_r2(),
}


def kinds() -> Iterator[type[Table]]:
    for name in actstore.__all__:
        found = getattr(actstore, name)
        if inspect.isclass(found) and issubclass(found, Table):
            yield found


def check_plain(answer: Any) -> None:
    pickled = pickle.loads(pickle.dumps(answer))  # noqa: S301  of our own
    for same in (pickled, copy.deepcopy(answer), copy.copy(answer)):
        assert type(same) is type(answer)
        assert same == answer
        assert (repr(same), same._repr_html_()) == (repr(answer), answer._repr_html_())


def check_arrow(answer: Table) -> None:
    """An empty name is no column of polars, and none of ours has one."""
    arrow = answer.to_arrow()
    assert pa.table(answer).equals(arrow)
    assert pl.DataFrame(answer).equals(answer.to_polars())
    pd.testing.assert_frame_equal(pa.table(answer).to_pandas(), answer.to_pandas())


def test_every_answer_is_plain_data(direct: Lab, remote: Lab, near: Lab) -> None:
    answers = [ask(direct.run("planted")) for ask in QUESTIONS.values()]
    answers += [ask(remote) for ask in LIVE.values()]
    answers += [ask(near) for ask in TRAINED.values()]
    for answer in answers:
        check_plain(answer)
        if isinstance(answer, Table):
            check_arrow(answer)
    seen = {type(answer).__name__ for answer in answers}
    assert {kind.__name__ for kind in kinds()} - seen - ELSEWHERE == {"Table", "NormAnswer"}


def test_what_asks_is_copied_with_its_connection_and_is_not_pickled(direct: Lab, remote: Lab, near: Lab) -> None:
    for lab in (direct, remote):
        run = lab.run("planted")
        handles = [lab, run, run.features(SAE), run.feature(SAE, FIRING), lab.attach("planted")]
        for handle in handles:
            assert copy.deepcopy(handle)._backend is handle._backend
            with pytest.raises(TypeError, match="cannot be pickled: pickle answers"):
                pickle.dumps(handle)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(near.checkpoints(RUNS))
    assert copy.deepcopy(direct.run("planted")).norms() == direct.run("planted").norms()


def test_a_picture_asks_for_nothing(direct: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = direct.run("planted")
    profile, growth = run.norms(histogram=3), run.fit_growth()
    monkeypatch.setattr(type(direct._backend), "ask", lambda *_: pytest.fail("asked"))
    for ax in (profile.plot(), profile.plot(growth=growth), profile.plot_histogram(), growth.plot()):
        assert ax.lines or ax.patches
