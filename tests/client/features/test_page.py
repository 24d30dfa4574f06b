"""A page is the single questions together; what cannot be asked is left out, and the page says why."""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

from actstore import FeaturePage, Lab, Where
from actstore._features import feature as _feature_page
from actstore_service.server import Service
from tests.client.conftest import SERVICE_TOKEN
from tests.client.workers import saes as planted
from tests.client.workers.stand_in import StandInWorkers
from tests.stored_run import FIRING, SAE, SILENT

STORED = ("statistics", "token_r2", "top", "uniform", "quantiles", "cofiring")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def page(remote: Lab) -> FeaturePage:
    return remote.run("planted").feature(SAE, FIRING).page(6)


def test_a_page_is_the_single_questions_together(page: FeaturePage, remote: Lab) -> None:
    feature = remote.run("planted").feature(SAE, FIRING)
    assert page.statistics == feature.statistics()
    assert page.token_r2 == feature.token_r2()
    assert page.top == feature.top(6)
    assert page.uniform == feature.uniform(6)
    assert page.quantiles == feature.quantiles(_feature_page.QUANTILE_BINS, 1)
    assert page.cofiring == feature.cofiring(_feature_page.RELATED_FEATURES)
    assert page.logit_lens == feature.logit_lens(_feature_page.LENS_TOKENS)
    assert page.neighbors == feature.neighbors(_feature_page.RELATED_FEATURES)
    assert (page.missing, page.other_weights) == ({}, False)


def test_the_strongest_example_is_ablated(page: FeaturePage, workers: StandInWorkers) -> None:
    """Up to its strongest token to see what is read, and past it to see what is predicted; as stored, BOS and all."""
    [of_text], [of_direction] = page.ablated_text, page.ablated_direction
    ids, peak = page.top.table["tokens"][0].as_py(), page.top.table["position"][0].as_py()
    assert ids[0] == 0
    sent = workers.requests[-2:]
    assert [(list(asked.text), asked.prepend_bos) for asked in sent] == [(ids[: peak + 1], None), (ids, None)]
    assert (sent[0].position, sent[0].first_ablated) == (peak, 0)
    assert of_text.activation == planted.ACTIVATION
    assert [row["next_text"] for row in of_direction] == page.top.table["texts"][0].as_py()[1:]


def test_what_is_far_from_the_strongest_token_is_read_and_not_ablated(
    remote: Lab, workers: StandInWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_feature_page, "ABLATED_BEFORE", 2)
    page = remote.run("planted").feature(SAE, FIRING).page(1)
    [of_text], [of_direction] = page.ablated_text, page.ablated_direction
    peak = page.top.table["position"][0].as_py()
    assert peak > 3
    assert len(workers.requests[-2].text) == peak + 1
    assert workers.requests[-2].first_ablated == of_text.first == peak - 2
    assert len(of_text.changes()) == 3
    assert of_direction.table["position"][0].as_py() == peak - 2


def test_more_examples_or_none_are_ablated(remote: Lab) -> None:
    feature = remote.run("planted").feature(SAE, FIRING)
    assert len(feature.page(2, ablated=3).ablated_text) == 3
    none = feature.page(2, ablated=0)
    assert none.ablated_text == ()
    assert none.missing == dict.fromkeys(("ablated_text", "ablated_direction"), "not asked for")


def test_only_some_tokens(remote: Lab) -> None:
    page = remote.run("planted").feature(SAE, FIRING).page(4, where=Where(documents=iter([2])), exclude=())
    for examples in (page.top, page.uniform, page.quantiles):
        assert {row["document"] for row in examples} == {2}
    assert page.excluded == ()


def test_the_same_page_without_a_service_lacks_its_live_parts_and_says_so(page: FeaturePage, direct: Lab) -> None:
    stored = direct.run("planted").feature(SAE, FIRING).page(6)
    assert [getattr(stored, name) == getattr(page, name) for name in STORED] == [True] * len(STORED)
    assert set(stored.missing) == set(_feature_page.LIVE_PARTS)
    for shown in (repr(stored), stored._repr_html_()):
        assert "without logit_lens, neighbors, ablated_text, ablated_direction: " in shown
        assert "is a bucket without a service" in shown
    assert stored.to_dict()["logit_lens"] is None


def test_workers_that_are_away_cost_the_live_parts_alone(store: Path) -> None:
    import actstore
    from actstore_service.settings import Settings
    from actstore_storage.bucket.opening import open_bucket

    settings = Settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", token=SERVICE_TOKEN)
    alone = Service(open_bucket(str(store)), settings)
    with actstore.connect(alone.address, token=SERVICE_TOKEN) as lab:
        page = lab.run("planted").feature(SAE, FIRING).page(2)
    alone.stop()
    assert len(page.top) == 2
    assert set(page.missing.values()) == {page.missing["logit_lens"]}
    assert "without workers" in page.missing["logit_lens"]


def test_one_part_that_is_refused_leaves_the_others(remote: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of one token cannot be ablated."""
    monkeypatch.setattr(_feature_page, "_ablate_text", lambda feature, *_: feature.ablate_text("x"))
    page = remote.run("planted").feature(SAE, FIRING).page(2)
    assert list(page.missing) == ["ablated_text"]
    assert "one token" in page.missing["ablated_text"]
    assert page.logit_lens is not None
    assert len(page.ablated_direction) == 1


def test_a_feature_that_never_fires_has_an_empty_page_that_says_so(remote: Lab, tmp_path: Path) -> None:
    page = remote.run("planted").feature(SAE, SILENT).page()
    assert [len(part) for part in (page.top, page.uniform, page.quantiles, page.cofiring)] == [0] * 4
    assert page.logit_lens is not None  # what it would write is known all the same
    for shown in (repr(page), page._repr_html_()):
        assert "never active on 62 tokens: there are no examples" in shown
        assert _feature_page.NEVER_FIRES in shown
    assert page.to_dict()["token_r2"]["token_r2"] is None
    page.plot().savefig(tmp_path / "silent.png")


@pytest.mark.parametrize("hash_", ["WEIGHTS", "CONFIG", "SAE_SHA256"])
def test_other_weights_than_the_runs_are_told(remote: Lab, monkeypatch: pytest.MonkeyPatch, hash_: str) -> None:
    monkeypatch.setattr(planted, hash_, "e" * 64)
    page = remote.run("planted").feature(SAE, FIRING).page(2)
    assert page.other_weights
    assert "other weights than those that the run stored" in repr(page)
    assert "other weights than those that the run stored" in page._repr_html_()


def test_a_page_is_plain_values(page: FeaturePage) -> None:
    found = json.loads(json.dumps(page.to_dict(), allow_nan=False))
    assert set(found) == {*STORED, "logit_lens", "neighbors", "ablated_text", "ablated_direction", "missing"}
    assert found["ablated_text"][0]["activation"] == planted.ACTIVATION


def test_a_page_is_a_figure_of_its_parts(page: FeaturePage, direct: Lab, tmp_path: Path) -> None:
    titles = [ax.get_title() for ax in page.plot().axes if ax.get_title()]
    assert titles[0].startswith(f"feature {FIRING} of {SAE}")
    assert titles[1] == "logit lens of the decoder direction"
    assert titles[2].startswith("feature 3 at the last token, 4: change with each token deleted")
    assert titles[3].startswith("log-probability of each token without what feature 3 writes")
    page.plot().savefig(tmp_path / "page.png")
    assert len(direct.run("planted").feature(SAE, FIRING).page(2).plot().axes) == 1


def test_a_page_is_a_file_for_a_browser(page: FeaturePage, tmp_path: Path) -> None:
    page.save_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert page._repr_html_() in text
