"""Live questions through a real service: each field arrives as it was asked, and answers say what the workers said."""

import json

import numpy as np
import pytest

from actstore import BadRequest, Lab, Where
from actstore._features.feature import Feature
from actstore._features.features import SaeFeatures
from actstore_api.records.model import TokenizeText
from actstore_api.records.sae import AblateDirection, AblateText, EncodeText, FindNeighbors, GetLogitLens
from actstore_api.records.terms import ModelReference
from tests.client.workers import saes as planted
from tests.client.workers.stand_in import StandInWorkers
from tests.stored_run import BOS_ONLY, D_SAE, EVERYWHERE, FIRING, MODEL, SAE, SILENT, StoredRun

ASKED = {"model": ModelReference(MODEL), "sae": SAE}
TEXT = "say word6 word7 word9"


@pytest.fixture
def features(remote: Lab) -> SaeFeatures:
    return remote.run("planted").features(SAE)


@pytest.fixture
def feature(features: SaeFeatures) -> Feature:
    return features[FIRING]


def test_a_lens_is_asked_for_as_it_was_wanted(feature: Feature, workers: StandInWorkers) -> None:
    found = feature.logit_lens(3, side="encoder", fold_norm=True, longest_unembedding=20)
    assert workers.requests[-1] == GetLogitLens(
        **ASKED,
        features=(FIRING,),
        side="encoder",
        fold_norm=True,
        longest_unembedding=20.0,
        k=3,
    )
    assert (found.side, found.fold_norm, found.masked_tokens) == ("encoder", True, planted.MASKED)
    assert [row["text"] for row in found.end("top")] == [" top1", " top2", " top3"]
    assert "encoder direction (what it reads)" in repr(found)
    assert "3 tokens masked" in repr(found)


def test_a_lens_masks_nothing_unless_told(feature: Feature, workers: StandInWorkers) -> None:
    feature.logit_lens()
    sent = workers.requests[-1]
    assert sent.longest_unembedding is None
    assert (sent.side, sent.fold_norm, sent.k) == ("decoder", False, 20)


def test_many_features_share_a_lens(features: SaeFeatures, workers: StandInWorkers) -> None:
    found = features.logit_lens([FIRING, np.int64(SILENT)], 2)
    assert workers.requests[-1].features == (FIRING, SILENT)
    assert found.features == [FIRING, SILENT]
    assert [row["logit"] for row in found.end("top", SILENT)] == [9 + SILENT / 16, 8 + SILENT / 16]
    with pytest.raises(BadRequest, match="end"):
        found.end("middle")


@pytest.mark.parametrize("ablation", ["delete", "zero_embedding", "zero_residual", "mean_residual"])
def test_text_is_ablated_as_it_was_asked(ablation: str, feature: Feature, workers: StandInWorkers) -> None:
    found = feature.ablate_text(TEXT, position=3, ablation=ablation, pairs=True)
    assert workers.requests[-1] == AblateText(
        **ASKED,
        feature=FIRING,
        text=TEXT,
        position=3,
        ablation=ablation,
        pairs=True,
        prepend_bos=True,
    )
    assert (found.position, found.activation) == (3, planted.ACTIVATION)
    assert found.changes() == [None, *(planted.effect(first) for first in (1, 2, 3))]


def test_a_position_that_is_not_named_is_left_to_the_workers(feature: Feature, workers: StandInWorkers) -> None:
    found = feature.ablate_text(TEXT)
    assert workers.requests[-1].position is None
    assert workers.requests[-1].pairs is False
    assert len(found.pairs()) == 0
    assert "'·word9', position 4: 4 on the whole text" in repr(found)


def test_pairs_are_ordered_by_what_their_tokens_do_not_explain(feature: Feature) -> None:
    pairs = list(feature.ablate_text(TEXT, pairs=True).pairs())
    assert [(row["first"], row["interaction"]) for row in pairs[:3]] == [(1, -1.5)] * 3
    assert {row["interaction"] for row in pairs[3:]} == {0.0}
    assert pairs[0]["second_text"] == " word6"


def test_a_direction_is_ablated(feature: Feature, workers: StandInWorkers) -> None:
    found = feature.ablate_direction(TEXT)
    assert workers.requests[-1] == AblateDirection(**ASKED, feature=FIRING, text=TEXT, prepend_bos=True)
    assert [row["next_text"] for row in found] == ["say", " word6", " word7", " word9"]
    assert "in all -1 nats" in repr(found)
    assert found.scale == 1.0


def test_neighbors_of_a_feature_and_of_a_vector(
    feature: Feature, features: SaeFeatures, workers: StandInWorkers
) -> None:
    found = feature.neighbors(4, side="encoder")
    assert workers.requests[-1] == FindNeighbors(sae=SAE, direction=FIRING, side="encoder", k=4)
    assert found.features == [0, 1, 2, 4]
    assert features.by_direction(np.arange(8), 2).features == [0, 1]
    assert workers.requests[-1].direction == tuple(range(8))


def test_a_text_is_encoded(features: SaeFeatures, workers: StandInWorkers) -> None:
    found = features.encode_text("word6 word7 word9")
    assert workers.requests[-1] == EncodeText(**ASKED, text="word6 word7 word9", prepend_bos=True)
    assert found.on(FIRING) == [0.0, 0.0, 0.0, 9.0]
    assert found.on(BOS_ONLY) == [9.0, 0.0, 0.0, 0.0]
    assert "3 (9), 0 (0.25)" in repr(found)
    assert json.loads(json.dumps(found.to_dict()))["tokens"][0]["text"] == "<bos>"


def test_features_by_text_are_those_that_fire_more_than_they_do_in_the_run(
    features: SaeFeatures, stored: StoredRun
) -> None:
    """BOS, and with it BOS_ONLY, does not count; lift is the share of the text's tokens over the run's density."""
    found = list(features.by_text(TEXT))
    density = np.count_nonzero(stored.features[SAE][stored.rows()], axis=0) / stored.rows().sum()
    assert [row["feature"] for row in found] == [FIRING, EVERYWHERE]
    assert found[0] == {
        "feature": FIRING, "active_tokens": 2, "mean": 15 / 4, "maximum": 9.0, "density": density[FIRING],
        "lift": (2 / 4) / density[FIRING], "position": 4, "text": " word9",
    }  # fmt: skip
    assert found[1]["lift"] == 1.0


def test_features_by_text_within_bounds(features: SaeFeatures) -> None:
    assert features.by_text(TEXT, density=(None, 0.9)).features == [FIRING]
    assert features.by_text(TEXT, density=(0.9, None)).features == [EVERYWHERE]
    assert features.by_text(TEXT, order="active_tokens", k=1).features == [EVERYWHERE]
    assert features.by_text(TEXT, order="maximum").features == [FIRING, EVERYWHERE]


def test_a_feature_that_never_fires_in_the_run_has_no_lift_and_comes_last(remote: Lab) -> None:
    """In an empty run no feature fires."""
    found = list(remote.run("empty").features(SAE).by_text(TEXT))
    assert {row["lift"] for row in found} == {None}
    assert {row["density"] for row in found} == {0.0}


def test_a_token_by_its_text(features: SaeFeatures, workers: StandInWorkers) -> None:
    found = features.by_token(" word5")
    assert workers.requests[-1] == TokenizeText(model=ModelReference(MODEL), text=" word5", one_token=True)
    assert found == features.by_token(5) == features.active(Where(tokens=[5]), order="lift")
    with pytest.raises(BadRequest, match="2 tokens") as refused:
        features.by_token("word5 word6")
    assert refused.value.reason == "ANSWER_NOT_ONE_TOKEN"


def test_what_the_workers_refuse_names_the_field(feature: Feature) -> None:
    with pytest.raises(BadRequest, match="one token") as refused:
        feature.ablate_text("x")
    assert (refused.value.field, refused.value.allowed) == ("text", "two")


def test_all_features_together(features: SaeFeatures) -> None:
    assert len(features) == D_SAE
    assert features[FIRING].index == FIRING
    many = features.sample([FIRING, EVERYWHERE], k=2)
    assert many.of(EVERYWHERE) == features[EVERYWHERE].top(2)
    assert "Feature 3 of planted-sae: strongest, 2 examples" in repr(many)
    with pytest.raises(BadRequest, match="no examples of feature 1"):
        many.of(1)
    assert "search" in repr(features)
    assert "ablate_text" in repr(features[0])
