"""Questions about a model through a real service: each field arrives as it was asked, and answers say what was said."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

from actstore import BadRequest, Lab, StoredText
from actstore_api.records.model import (
    AblateSites,
    CompareTokens,
    GetAttention,
    GetInductionScores,
    GetTextLens,
    SteerText,
    TokenizeText,
)
from actstore_api.records.terms import ModelReference, SaeFeature, StoredSample
from tests.client.workers import models as planted
from tests.client.workers.stand_in import StandInWorkers

TEXT = "say word6 word7"
TINY, MODEL = ModelReference("tiny"), ModelReference("tiny", "r1")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_attention_is_asked_for_as_it_was_wanted(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.attention(
        "tiny", TEXT, layers=[2, np.int64(0)], heads=[1], patterns=True, revision="r1", prepend_bos=False
    )
    assert workers.requests[-1] == GetAttention(
        model=MODEL, text=TEXT, prepend_bos=False, layers=(2, 0), heads=(1,), patterns=True
    )
    rows = found.to_arrow().to_pylist()
    assert [(row["layer"], row["head"]) for row in rows] == [(2, 1), (0, 1)]
    assert rows[0]["entropy"] == planted.measure("entropy", 2, 1)
    assert found.tokens["text"].to_pylist() == ["say", " word6", " word7"]
    np.testing.assert_allclose(found.pattern(0, 1), [[1, 0, 0], [1 / 3, 2 / 3, 0], [1 / 4, 1 / 4, 1 / 2]], rtol=1e-6)
    np.testing.assert_array_equal(found.plot_pattern(0, 1).images[0].get_array(), found.pattern(0, 1))
    assert [row["layer"] for row in found.top("induction", 1)] == [2]
    assert found.plot(measure="induction").images[0].get_array().tolist() == [
        [planted.measure("induction", layer, 1)] for layer in (0, 2)
    ]
    with pytest.raises(BadRequest, match="layer 1, head 0"):
        found.pattern(1, 0)
    with pytest.raises(BadRequest, match="head None"):
        found.pattern(1, None)


def test_patterns_are_not_sent_unless_asked_for(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.attention("tiny", TEXT)
    assert workers.requests[-1] == GetAttention(model=TINY, text=TEXT)
    assert found.patterns.num_rows == 0
    assert "Attention of 6 heads of tiny over 4 tokens" in repr(found)
    assert "share of the head&#x27;s attention on the token before the query" in found._repr_html_()
    with pytest.raises(BadRequest) as refused:
        found.pattern(0, 0)
    assert refused.value.field == "patterns"


def test_induction_scores(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.induction_scores("tiny", n_tokens=20, n_texts=2, seed=7, layers=[1], heads=[0, 1])
    assert workers.requests[-1] == GetInductionScores(model=TINY, tokens=20, texts=2, seed=7, layers=(1,), heads=(0, 1))
    assert (found.repeated, found.loss_first, found.loss_second) == (20, planted.LOSS_FIRST, planted.LOSS_SECOND)
    assert [row["head"] for row in found.top()] == [1, 0]
    assert "on 20 random tokens that come twice: loss 9 the first time, 1.5 the second" in repr(found)
    assert found.plot().images[0].get_array().tolist() == [
        [planted.measure("induction", 1, head) for head in range(planted.HEADS)]
    ]
    remote.induction_scores("tiny")
    assert workers.requests[-1].tokens is None


def test_a_lens_on_a_text(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.logit_lens("tiny", TEXT, k=2, layers=[0, 2], site="resid_pre", target=" word9")
    assert workers.requests[-1] == GetTextLens(
        model=TINY, text=TEXT, k=2, layers=(0, 2), site="resid_pre", target=" word9"
    )
    assert [row["text"] for row in found.top(1)] == [" t211", " t212"]
    assert [row["text"] for row in found.top(1, layer=0)] == [" t011", " t012"]
    for place, field in (((4,), "position"), ((-1,), "position"), ((1, 1), "layer"), (("1",), "position")):
        with pytest.raises(BadRequest) as refused:
            found.top(*place)
        assert refused.value.field == field
    assert found.grid("kl").tolist() == [[2, 4, 6, 8], [0, 0, 0, 0]]
    assert found.grid("text")[1].tolist() == [" t201", " t211", " t221", " t231"]
    assert set(found.to_arrow()["target_text"].to_pylist()) == {" word9"}
    assert "3  ·word7  ·t031  ·t231" in repr(found)
    assert "probability 0.75 | kl 0 nats" in found._repr_html_()
    assert "<th>&lt;bos&gt;</th>" in found._repr_html_()
    ax = found.plot(column="kl")
    assert ax.images[0].get_array().tolist() == found.grid("kl").tolist()
    assert "·t201" in [text.get_text() for text in ax.texts]
    assert found.plot(column="target_log_probability").get_ylabel() == "layer"


def test_the_last_position_has_no_next_token_in_a_lens(remote: Lab) -> None:
    found = remote.logit_lens("tiny", TEXT)
    assert found.grid("target_text")[0].tolist() == ["say", " word6", " word7", None]
    assert found.plot(column="target_log_probability").images


def test_steering_along_a_direction(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.steer(
        "tiny", TEXT, direction=np.array([3.0, 4.0]), site="resid_post.1", strength=-2, unit="absolute", mode="set",
        positions="generated", max_new_tokens=3, temperature=0.5, seed=9, prepend_bos=False,
    )  # fmt: skip
    assert workers.requests[-1] == SteerText(
        model=TINY, prompt=TEXT, prepend_bos=False, direction=(3.0, 4.0), site="resid_post.1", mode="set",
        strength=-2.0, unit="absolute", positions="generated", max_new_tokens=3, temperature=0.5, seed=9,
    )  # fmt: skip
    assert (found.steered_text, found.unsteered_text) == (" s0 s1 s2", " u0 u1 u2")
    assert (found.strength, found.mean_norm, found.mode) == (-2.0, planted.MEAN_NORM, "set")
    assert [row["text"] for row in found.written("steered")] == [" s0", " s1", " s2"]
    assert "tiny steered at resid_post.1: set -2 along the direction, -0.25 of its mean norm" in repr(found)
    assert "steered:  s0 s1 s2" in repr(found)
    assert "log-probability steered -3, unsteered -2 | kl 1" in found._repr_html_()
    steered, unsteered = found.plot().lines
    assert steered.get_ydata().tolist() == unsteered.get_ydata().tolist() == [0.0, 0.5, 1.0]


def test_steering_along_a_feature_and_without_a_direction(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.steer("tiny", TEXT, sae="some-sae", feature=5, strength=2)
    sent = workers.requests[-1]
    assert sent.direction == SaeFeature("some-sae", 5)
    assert (sent.site, sent.strength, sent.max_new_tokens, sent.temperature) == ("", 2.0, 32, 0.0)
    assert (sent.unit, sent.mode) == ("mean_norm", "add")
    assert found.strength == 2 * planted.MEAN_NORM
    away = remote.steer("tiny", TEXT, sae="some-sae", feature=0, mode="project_out", max_new_tokens=2)
    assert workers.requests[-1].strength is None
    assert away.strength is None
    assert "without what is along the direction" in repr(away)


def test_parts_are_ablated(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.ablate(
        "tiny", [TEXT, "say word8"], ablation="resample", sites=["mlp_out", "z"], layers=[0, 1], heads=[1], seed=3,
        same_position=True,
    )  # fmt: skip
    assert workers.requests[-1] == AblateSites(
        model=TINY, texts=(TEXT, "say word8"), sites=("mlp_out", "z"), layers=(0, 1), heads=(1,),
        ablation="resample", seed=3, same_position=True,
    )  # fmt: skip
    assert (found.loss, found.counted, found.ablation) == (planted.LOSS, planted.COUNTED, "resample")
    assert [(row["site"], row["change"]) for row in found.top(2)] == [("mlp_out.1", -0.4), ("z.1.1", 0.4)]
    assert found.by_text["tokens"].to_pylist() == [20, 20]
    assert "tiny without each of 4 parts (resample): loss 2.5 over 40 tokens with all of them" in repr(found)
    assert found.excluded == ("bos", "special")
    ax = found.plot()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["mlp_out", "z 1"]
    assert ax.images[0].get_array().tolist() == [[-0.2, 0.2], [-0.4, 0.4]]
    assert [text.get_text() for text in ax.texts] == ["-0.2", "0.2", "-0.4", "0.4"]


def test_one_text_is_one_text_and_a_mean_may_be_of_a_run(remote: Lab, workers: StandInWorkers) -> None:
    remote.ablate("tiny", TEXT, ablation="mean", stored=StoredText("planted", 100))
    sent = workers.requests[-1]
    assert (sent.texts, sent.stored) == ((TEXT,), StoredSample("planted", 100))
    assert sent.ablation == "mean"


def test_replaced_tokens_are_compared(remote: Lab, workers: StandInWorkers) -> None:
    corrupt = {"odd": "say word9 word7", "plain": "say word8 word5"}
    found = remote.compare_tokens(
        "tiny", clean=TEXT, corrupt=corrupt, layers=[1], draws=9, seed=3, revision="r1", prepend_bos=False
    )
    assert workers.requests[-1] == CompareTokens(
        model=MODEL, clean=TEXT, corrupt=tuple(corrupt.values()), prepend_bos=False, layers=(1,), draws=9, seed=3
    )
    rows = found.to_arrow().select(["corruption", "position", "prompt", "text", "head", "shift"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("odd", 1, "clean", " word6", None, None), ("odd", 1, "corrupt", " word9", "1.1", 0.5),
        ("plain", 1, "clean", " word6", None, None), ("plain", 1, "corrupt", " word8", "1.0", 0.0),
        ("plain", 2, "clean", " word7", None, None), ("plain", 2, "corrupt", " word5", "1.0", 0.0),
    ]  # fmt: skip
    assert [row["odd"] for row in found if row["text"] != planted.ODD] == [""] * 5
    assert found.verdicts == {
        "odd": "odd: ' word9' at 1 (corrupt): the norm of its embedding is 4.5 deviations above the vocabulary's (3 "
        "stand out); head 1.1 puts 0.75 of later attention on it, on random tokens 0.25 ± 0.06 (0.25 and 3 "
        "deviations stand out). Its effects at heads 1.1, and behind them, may be of what this token is to the model "
        "and not of the task: compare a corruption with tokens of one kind",
        "plain": "plain: no token stands out, of 2 that are replaced and 2 in their place",
    }
    assert (found.reacting("odd"), found.reacting("plain")) == ({(1, 1): " word9"}, {})
    assert found.verdicts["odd"] in repr(found)
    assert found.to_dict()["verdicts"] == found.verdicts


ANSWERS: dict[str, Callable[[Lab], Any]] = {
    "texts of tokens": lambda lab: lab.tokens("tiny", TEXT),
    "attention": lambda lab: lab.attention("tiny", TEXT, patterns=True),
    "induction": lambda lab: lab.induction_scores("tiny"),
    "lens": lambda lab: lab.logit_lens("tiny", TEXT),
    "steering": lambda lab: lab.steer("tiny", TEXT, sae="some-sae", feature=1, mode="project_out"),
    "ablation": lambda lab: lab.ablate("tiny", TEXT),
    "tokens": lambda lab: lab.compare_tokens("tiny", clean=TEXT, corrupt={"other": "say word9 word7"}),
}


@pytest.mark.parametrize("asked", ANSWERS)
def test_every_answer_goes_into_json_and_a_notebook(asked: str, remote: Lab) -> None:
    found = ANSWERS[asked](remote)
    assert json.loads(json.dumps(found.to_dict()))["provenance"]["model"] == "tiny"
    assert found._repr_html_().startswith("<p><b>")
    assert len(found.to_pandas()) == len(found)


@pytest.mark.parametrize("asked", ANSWERS)
def test_a_bucket_has_no_model_to_ask(asked: str, direct: Lab) -> None:
    with pytest.raises(BadRequest) as refused:
        ANSWERS[asked](direct)
    assert refused.value.reason == "NEEDS_SERVICE"
    assert "the workers of a service" in str(refused.value)


def test_what_the_workers_refuse_names_the_field(remote: Lab) -> None:
    with pytest.raises(BadRequest, match="an encoder") as refused:
        remote.logit_lens("encoder", TEXT)
    assert (refused.value.reason, refused.value.field, refused.value.allowed) == (
        "MODEL_UNSUPPORTED",
        "model",
        "causal",
    )


def test_token_ids_in_place_of_texts(remote: Lab, workers: StandInWorkers) -> None:
    """Of numpy's kinds, too; and nothing is asked for in front of them."""
    ids, other = np.array([0, 6, 7], np.int32), [0, 9, 7]
    sent = (0, 6, 7)
    found = remote.tokens("tiny", ids, revision="r1")
    assert workers.requests[-1] == TokenizeText(model=MODEL, text=sent)
    assert (found.ids, found.table["special"].to_pylist()) == ([0, 6, 7], [True, False, False])
    remote.attention("tiny", ids, revision="r1", prepend_bos=True)
    assert workers.requests[-1] == GetAttention(model=MODEL, text=sent, prepend_bos=True)
    remote.logit_lens("tiny", ids, target=np.int64(9))
    assert (workers.requests[-1].text, workers.requests[-1].target) == (sent, 9)
    remote.steer("tiny", tuple(ids), sae="some-sae", feature=1, strength=1)
    assert workers.requests[-1].prompt == sent
    for texts, expected in ((ids, (sent,)), ([ids, other], (sent, (0, 9, 7)))):
        remote.ablate("tiny", texts)
        assert workers.requests[-1].texts == expected
    remote.ablate("tiny", np.array([ids, other]))
    assert len(workers.requests[-1].texts) == 2
    remote.compare_tokens("tiny", clean=ids, corrupt={"other": other})
    assert (workers.requests[-1].clean, workers.requests[-1].corrupt) == (sent, ((0, 9, 7),))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda lab: lab.attention("tiny", TEXT, layers=[]), "layers"),
        (lambda lab: lab.attention("tiny", TEXT, heads=()), "heads"),
        (lambda lab: lab.induction_scores("tiny", layers=()), "layers"),
        (lambda lab: lab.induction_scores("tiny", heads=range(0)), "heads"),
        (lambda lab: lab.logit_lens("tiny", TEXT, layers=np.array([], int)), "layers"),
        (lambda lab: lab.ablate("tiny", TEXT, sites=[]), "sites"),
        (lambda lab: lab.ablate("tiny", TEXT, layers=iter(())), "layers"),
        (lambda lab: lab.ablate("tiny", TEXT, heads=set()), "heads"),
        (lambda lab: lab.compare_tokens("tiny", clean=TEXT, corrupt={"a": TEXT}, layers=[]), "layers"),
        (lambda lab: lab.weights("tiny", layers=[]), "layers"),
    ],
)
def test_an_empty_collection_is_not_taken_for_everything(
    call: Callable[[Lab], Any], field: str, remote: Lab, workers: StandInWorkers
) -> None:
    with pytest.raises(BadRequest, match="nothing to ask about") as refused:
        call(remote)
    assert refused.value.field == field
    assert not workers.requests


@pytest.mark.parametrize(
    ("call", "field", "word"),
    [
        (lambda lab, given: lab.ablate("tiny", TEXT, ablation=given), "ablation", "mean"),
        (lambda lab, given: lab.logit_lens("tiny", TEXT, site=given), "site", "resid_mid"),
        (lambda lab, given: lab.steer("tiny", TEXT, **DIRECTION, mode=given), "mode", "add"),
        (lambda lab, given: lab.steer("tiny", TEXT, **DIRECTION, unit=given), "unit", "absolute"),
        (lambda lab, given: lab.steer("tiny", TEXT, **DIRECTION, positions=given), "positions", "all"),
        (lambda lab, given: lab.attention("tiny", TEXT).top(given), "measure", "entropy"),
        (lambda lab, given: lab.attention("tiny", TEXT).plot(measure=given), "measure", "entropy"),
        (lambda lab, given: lab.induction_scores("tiny").top(given), "score", "induction"),
        (lambda lab, given: lab.logit_lens("tiny", TEXT).plot(column=given), "column", "kl"),
    ],
)
def test_one_word_is_meant(call: Callable[[Lab, Any], Any], field: str, word: str, remote: Lab) -> None:
    for given in (None, [], [word], (word, word), 3, "nonsense"):
        with pytest.raises(BadRequest) as refused:
            call(remote, given)
        assert refused.value.field == field
        assert word in str(refused.value.allowed)


def test_how_many_rows_at_most_is_k_everywhere(remote: Lab) -> None:
    assert len(remote.attention("tiny", TEXT).top("entropy", k=1)) == 1
    assert len(remote.induction_scores("tiny").top(k=1)) == 1
    assert len(remote.ablate("tiny", TEXT).top(k=1)) == 1


NO_IDS = {
    "none": [], "a truth": [1, True], "numpy's": np.array([True]), "a fraction": [1.0], "numpy's fraction": np.ones(2),
    "below 0": [-1], "past the wire": [2**31], "in two dimensions": [[1, 2]], "a number": 3, "bytes": b"ab",
    "words": ["a", "b"], "nothing": None, "a dict": {1: 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_IDS)
def test_what_is_neither_text_nor_token_ids_is_refused_here(kind: str, remote: Lab) -> None:
    for call in (remote.tokens, remote.attention, remote.logit_lens):
        with pytest.raises(BadRequest) as refused:
            call("tiny", NO_IDS[kind])
        assert refused.value.field == "text"


def test_texts_and_ids_do_not_mix(remote: Lab) -> None:
    with pytest.raises(BadRequest, match="texts and token ids") as refused:
        remote.ablate("tiny", [TEXT, [0, 5]])
    assert refused.value.field == "texts"


DIRECTION = {"direction": [1.0], "site": "resid_post.1"}


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda lab: lab.tokens("", TEXT), "model"),
        (lambda lab: lab.weights(""), "model"),
        (lambda lab: lab.attention("tiny", ""), "text"),
        (lambda lab: lab.attention("tiny", TEXT, layers=[-1]), "layers"),
        (lambda lab: lab.attention("tiny", TEXT, heads=["a"]), "heads"),
        (lambda lab: lab.attention("tiny", TEXT, heads=3), "heads"),
        (lambda lab: lab.logit_lens("tiny", TEXT, site="z"), "site"),
        (lambda lab: lab.logit_lens("tiny", TEXT, k=-1), "k"),
        (lambda lab: lab.induction_scores("tiny", seed=-1), "seed"),
        (lambda lab: lab.steer("tiny", TEXT, strength=1), "direction"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, sae="a", feature=1, strength=1), "direction"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, feature=0, strength=1), "direction"),
        (lambda lab: lab.steer("tiny", TEXT, direction=[1.0], strength=1), "site"),
        (lambda lab: lab.steer("tiny", TEXT, sae="a", feature=1, site="resid_post.1", strength=1), "site"),
        (lambda lab: lab.steer("tiny", TEXT, sae="a", strength=1), "feature"),
        (lambda lab: lab.steer("tiny", TEXT, feature=1, strength=1), "sae"),
        (lambda lab: lab.steer("tiny", TEXT, direction=[0.0, 0.0], site="resid_post.1", strength=1), "direction"),
        (lambda lab: lab.steer("tiny", TEXT, direction=[float("nan")], site="resid_post.1"), "direction"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, strength=float("inf")), "strength"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, temperature=-0.1), "temperature"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, mode="scale"), "mode"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, unit="metres"), "unit"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, positions="some"), "positions"),
        (lambda lab: lab.ablate("tiny", [TEXT, ""]), "texts"),
        (lambda lab: lab.ablate("tiny", TEXT, ablation="median"), "ablation"),
        (lambda lab: lab.ablate("tiny", TEXT, same_position=1), "same_position"),
        (lambda lab: lab.ablate("tiny", TEXT, stored=3), "stored"),
        (lambda lab: lab.ablate("tiny", TEXT, prepend_bos=1), "prepend_bos"),
        (lambda lab: lab.weights("tiny", stored=""), "stored"),
        (lambda lab: lab.weights("tiny", seed=2**32), "seed"),
        (lambda lab: lab.induction_scores("tiny", seed=2**32), "seed"),
        (lambda lab: lab.induction_scores("tiny", n_tokens=-1), "n_tokens"),
        (lambda lab: lab.induction_scores("tiny", n_texts=1.5), "n_texts"),
        (lambda lab: lab.steer("tiny", TEXT, **DIRECTION, max_new_tokens=-1), "max_new_tokens"),
        (lambda lab: lab.compare_tokens("tiny", clean="", corrupt={"a": TEXT}), "clean"),
        (lambda lab: lab.compare_tokens("tiny", clean=TEXT, corrupt={}), "corrupt"),
        (lambda lab: lab.compare_tokens("tiny", clean=TEXT, corrupt=[TEXT]), "corrupt"),
        (lambda lab: lab.compare_tokens("tiny", clean=TEXT, corrupt={"a": ""}), "corrupt"),
        (lambda lab: lab.compare_tokens("tiny", clean=TEXT, corrupt={"a": 5}), "corrupt"),
        (lambda lab: lab.compare_tokens("tiny", clean=TEXT, corrupt={"a": TEXT}, draws=-1), "draws"),
    ],
)
def test_what_the_wire_could_not_carry_is_refused_here(call: Callable[[Lab], Any], field: str, remote: Lab) -> None:
    with pytest.raises(BadRequest) as refused:
        call(remote)
    assert refused.value.field == field
