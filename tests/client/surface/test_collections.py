"""None stands for all, and an empty collection for nothing; switches are True or False; features are a collection."""

from collections.abc import Callable

import numpy as np
import pytest

import actstore
from actstore import BadRequest, Lab, Where
from tests.client.workers.stand_in import StandInWorkers
from tests.stored_run import D_SAE, FIRING, SAE

EMPTY: dict[str, tuple[Callable[[Lab], object], str]] = {
    "norms": (lambda lab: lab.run("planted").norms([]), "sites"),
    "norms of tokens": (lambda lab: lab.run("planted").token_norms(range(2), ()), "sites"),
    "edges": (lambda lab: lab.run("planted").norms(histogram=[]), "histogram"),
    "growth": (lambda lab: lab.run("planted").fit_growth(layers=[]), "layers"),
    "checkpoints": (lambda lab: lab.checkpoints([]), "runs"),
    "steps": (lambda lab: lab.checkpoints(["planted"], steps=[]), "steps"),
    "separability": (lambda lab: lab.checkpoints(["planted"]).separability(layers=range(0)), "layers"),
    "activations": (lambda lab: lab.run("planted").activations([]), "sites"),
    "documents": (lambda lab: lab.run("planted").activations("resid_post.1", documents=[]), "documents"),
    "tokens": (lambda lab: lab.run("planted").tokens(tokens=()), "tokens"),
    "sequences": (lambda lab: lab.run("planted").tokens(range(0)), "sequences"),
    "where": (lambda lab: lab.run("planted").feature(SAE, FIRING).top(where=Where(documents=[])), "documents"),
    "statistics": (lambda lab: lab.run("planted").features(SAE).statistics([]), "features"),
    "examples": (lambda lab: lab.run("planted").features(SAE).sample(()), "features"),
    "lens": (lambda lab: lab.run("planted").features(SAE).logit_lens([]), "features"),
    "encode": (lambda lab: lab.run("planted").encode([]), "saes"),
    "norms of a capture": (lambda lab: lab.capture("m", dataset="d", norm_sites=[]), "norm_sites"),
    "revisions": (lambda lab: lab.capture_revisions("m", [], dataset="d"), "revisions"),
    "weights": (lambda lab: lab.weights("tiny", layers=[]), "layers"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_collection_is_no_question_about_everything(case: str, remote: Lab, workers: StandInWorkers) -> None:
    ask, field = EMPTY[case]
    with pytest.raises(BadRequest) as caught:
        ask(remote)
    assert caught.value.field == field
    assert not workers.requests


def test_an_empty_collection_leaves_out_or_adds_nothing(direct: Lab) -> None:
    run = direct.run("planted")
    assert run.norms(exclude=()).excluded == ()
    assert run.norms(quantiles=()).quantile_columns == ()
    assert run.activations("resid_post.1", columns=()).table.column_names == ["activation"]


def test_a_text_on_which_nothing_fires_asks_for_no_feature(remote: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    features = remote.run("planted").features(SAE)
    some = features.by_text("word6 word7 word9")
    encoded = features.encode_text("word6 word7 word9")
    none = actstore.EncodedText(
        table=encoded.table.slice(0, 0), sae=SAE, tokens=encoded.tokens, provenance=encoded.provenance
    )
    monkeypatch.setattr(actstore.SaeFeatures, "encode_text", lambda *_: none)
    monkeypatch.setattr(actstore.SaeFeatures, "_densities", lambda *_: pytest.fail("asked"))
    found = features.by_text("word6")
    assert (len(found), found.table.schema) == (0, some.table.schema)
    assert (found.excluded, found.provenance) == (("bos",), encoded.provenance)


SWITCHES: dict[str, tuple[Callable[[Lab, object], object], str]] = {
    "force": (lambda lab, value: lab.remove("planted", force=value), "force"),
    "remove_orphans": (lambda lab, value: lab.check("planted", remove_orphans=value), "remove_orphans"),
    "quick": (lambda lab, value: lab.check("planted", quick=value), "quick"),
    "exact": (lambda lab, value: lab.run("planted").norms(exact=value), "exact"),
    "ascending": (lambda lab, value: lab.run("planted").features(SAE).search(ascending=value), "ascending"),
    "live": (lambda lab, value: lab.run("planted").feature(SAE, FIRING).page(live=value), "live"),
    "warn": (lambda lab, value: lab.run("planted").features(SAE).check(warn=value), "warn"),
    "progress": (lambda lab, value: lab.attach("planted").wait(progress=value), "progress"),
    "check_saes": (lambda lab, value: lab.attach("planted").wait(check_saes=value), "check_saes"),
    "ratios": (lambda lab, value: actstore.plot_growth(lab.run("planted").fit_growth(), ratios=value), "ratios"),
}


@pytest.mark.parametrize("value", ["no", 0, None])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_true_or_false(switch: str, value: object, direct: Lab) -> None:
    ask, field = SWITCHES[switch]
    with pytest.raises(BadRequest) as caught:
        ask(direct, value)
    assert (caught.value.field, caught.value.value) == (field, repr(value))
    assert direct.run("planted").complete


WRONG: dict[str, tuple[Callable[[Lab], object], str]] = {
    "runs": (lambda lab: lab.checkpoints(3), "runs"),  # type: ignore[arg-type]
    "steps": (lambda lab: lab.checkpoints("planted", steps=3), "steps"),  # type: ignore[arg-type]
    "quantiles in a word": (lambda lab: lab.run("planted").norms(quantiles="05"), "quantiles"),
    "one quantile": (lambda lab: lab.run("planted").norms(quantiles=0.5), "quantiles"),  # type: ignore[arg-type]
    "a quantile that is text": (lambda lab: lab.run("planted").norms(quantiles=["0.5"]), "quantiles"),
    "one layer": (lambda lab: lab.run("planted").fit_growth(layers=2), "layers"),  # type: ignore[arg-type]
    "no run": (lambda lab: lab.remove(3), "run"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_several_is_refused_by_its_name(case: str, direct: Lab) -> None:
    ask, field = WRONG[case]
    with pytest.raises(BadRequest) as caught:
        ask(direct)
    assert caught.value.field == field


def test_a_run_stands_for_its_name(direct: Lab) -> None:
    run = direct.run("planted")
    assert direct.check(run) == direct.check("planted")
    assert direct.checkpoints(run).names == ("planted",)
    with pytest.raises(BadRequest):
        direct.remove(run, force="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [[], ["saelens"], None, "parquet"])
def test_a_layout_is_one_word(layout: object, direct: Lab) -> None:
    with pytest.raises(BadRequest) as caught:
        direct.run("planted").export("resid_post.1", "folder", layout=layout)  # type: ignore[arg-type]
    assert caught.value.field == "layout"


def test_features_are_a_collection_of_features(lab: Lab) -> None:
    features = lab.run("planted").features(SAE)
    assert len(features) == D_SAE
    assert [feature.index for feature in features] == list(range(D_SAE))
    assert [index for index in range(-1, D_SAE + 2) if index in features] == list(range(D_SAE))
    assert np.int64(1) in features
    assert features[1] in features
    assert all(other not in features for other in (1.5, "1", True, None))
    assert lab.run("bfloat16").features(SAE)[1] not in features
    for index in (D_SAE, -1, "1"):
        with pytest.raises(BadRequest) as caught:
            features[index]  # type: ignore[index]
        assert caught.value.field == "feature"
