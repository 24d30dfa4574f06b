"""What is live of a stored token is of the text that was stored: the public client, on texts whose tokens do not come
back when their texts are joined and tokenised again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import actstore
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.capture.plan import Plan, PlanSettings
from actstore_worker.capture.preparing import Preparing
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.live_workers import CPU, live_lab
from tests.made_models.small_models import BUNDLED_MODELS, WORDS, save_metaspace, save_sae

QUOTES = (
    "# The user’s name isn’t checked here – see the café’s “menu”.\ndef check(self, value):\n    return value\n",
    'def join(self, parts):\n    """Don’t join empty parts — it’s wrong."""\n    return self.sep.join(parts)\n',
)
# By model: its SAE.
RUNS = {"pystdlib": "pystdlib-resid_post.1", "metaspace": "sae"}
FEATURES_LOOKED_AT, EXAMPLES_EACH = 12, 10


@dataclass(frozen=True)
class Stored:
    lab: actstore.Lab
    run: actstore.Run
    sae: str

    def features(self) -> list[int]:
        """The ones that fire most."""
        found = self.run.features(self.sae).search(order="active_tokens", k=FEATURES_LOOKED_AT)
        return found.features


@pytest.fixture(scope="module", params=RUNS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder, model = tmp_path_factory.mktemp("stored-and-live"), request.param
    for name in ("models", "data", "store"):
        (folder / name).mkdir()
    save_metaspace(folder / "models" / "metaspace")
    save_sae(folder / "models" / "sae", "standard")
    texts = [*QUOTES, *WORDS, "<s>" + WORDS[0]]
    (folder / "data" / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    catalog, bucket = ModelCatalog((folder / "models", BUNDLED_MODELS)), open_bucket(str(folder / "store"))
    asked = capture_request(model, "texts.jsonl", "run", saes=(RUNS[model],), sequences_per_shard=2)
    preparing = Preparing(bucket, catalog, PlanSettings(DatasetPlaces((folder / "data",))))
    plan = preparing.plan(asked)
    assert isinstance(plan, Plan)
    preparing.begin(plan, asked)
    capture_run(plan, bucket, CaptureWorker(bucket, CPU))
    with live_lab(bucket, folder / "models", BUNDLED_MODELS) as lab:
        yield Stored(lab, lab.run("run"), RUNS[model])


def test_a_live_activation_is_the_stored_one_of_every_example(stored: Stored) -> None:
    features, checked = stored.run.features(stored.sae), 0
    for index in stored.features():
        for row in features[index].top(EXAMPLES_EACH, tokens_before=128):
            assert row["first_position"] == 0
            tokens = row["tokens"][: row["position"] + 1]
            live = features.encode_text(tokens).on(index)
            np.testing.assert_allclose(live, row["activations"][: len(tokens)], atol=1e-5, rtol=1e-5)
            assert live[-1] == pytest.approx(row["activation"], rel=1e-5, abs=1e-5)
            checked += 1
    assert checked > FEATURES_LOOKED_AT


def test_a_pages_live_parts_are_of_the_text_that_was_stored(stored: Stored) -> None:
    for index in stored.features()[:3]:
        feature = stored.run.feature(stored.sae, index)
        page = feature.page(3, ablated=3)
        assert not page.missing
        assert len(page.ablated_text) == len(page.top) == 3
        for row, of_text, of_direction in zip(page.top, page.ablated_text, page.ablated_direction, strict=True):
            assert of_text.activation == pytest.approx(row["activation"], rel=1e-5, abs=1e-5)
            there = {each["position"]: each for each in of_direction}
            place = row["position"] - row["first_position"]
            if row["position"] in there:  # the last token of a sequence has no next one
                assert there[row["position"]]["activation"] == pytest.approx(row["activation"], rel=1e-5, abs=1e-5)
                assert there[row["position"]]["token"] == row["tokens"][place]


def test_examples_read_as_they_were_written(stored: Stored) -> None:
    feature = stored.run.feature(stored.sae, stored.features()[0])
    written = [f" {text}" if stored.sae == "sae" else text for text in (*QUOTES, *WORDS)]
    for row in feature.top(EXAMPLES_EACH, tokens_before=128, tokens_after=128):
        assert "".join(row["texts"][1:]) in [*written, "<s>" + WORDS[0]]
        assert len(row["texts"]) == len(row["tokens"])
    shown = repr(feature.top(EXAMPLES_EACH, tokens_before=128, tokens_after=128))
    assert "user’s" in shown
    assert "\ufffd" not in shown


def test_what_is_shown_of_a_text_and_of_its_ids_is_the_same(stored: Stored) -> None:
    model = stored.run.model.name
    found = stored.lab.tokens(model, QUOTES[0])
    assert "".join(found.table["text"].to_pylist()[1:]).lstrip() == QUOTES[0]
    assert found.table["special"].to_pylist() == [True] + [False] * (len(found) - 1)
    again = stored.lab.tokens(model, np.array(found.ids))
    assert again.table.equals(found.table)
    with pytest.raises(actstore.BadRequest) as refused:
        stored.lab.tokens(model, [1, 10**6])
    assert (refused.value.field, refused.value.value) == ("text", "1000000")


def test_a_sweep_of_stored_tokens(stored: Stored) -> None:
    """Prompts and answers as ids; the corrupt prompt has another token in the middle."""
    [clean] = [stored.run.tokens(range(2, 3)).table["token"].to_pylist()[:6]]
    corrupt, answers = [*clean[:3], clean[4], *clean[4:]], (clean[3], clean[2])
    shown = [row["text"] for row in stored.lab.tokens(stored.run.model.name, answers)]
    asked = {"sites": ["resid_pre"], "layers": [1], "progress": False}
    sweep = stored.lab.patch(stored.run.model.name, clean=clean, corrupt=corrupt, answers=answers, **asked)
    assert sweep.tokens["clean"] == [row["text"] for row in stored.run.tokens(range(2, 3))][:6]
    assert sweep.answer_texts == tuple(shown)
    by_text = stored.lab.patch(stored.run.model.name, clean=clean, corrupt=corrupt, answers=shown, **asked)
    assert by_text.table.equals(sweep.table)


def test_a_token_is_found_by_the_text_that_is_shown_of_it(stored: Stored) -> None:
    features = stored.run.features(stored.sae)
    shown = {row["text"]: row["token"] for row in stored.run.tokens(range(4)) if row["text"].startswith(" ")}
    assert len(shown) > 10
    for text, token in shown.items():
        assert features.by_token(text) == features.by_token(token)
