"""What a run's beginning puts into the bucket beside the run, and what is wanted while captures come and go."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import BadRequest
from actstore_storage.format.records import seal
from actstore_storage.registry.models import ModelRecord, list_models
from actstore_storage.registry.saes import SaeModelRecord, list_saes
from actstore_storage.registry.token_texts import token_texts
from actstore_storage.runs.opening import list_runs
from actstore_storage.runs.wanted import NO_PLACE
from actstore_worker.capture.plan import PlanSettings
from actstore_worker.capture.preparing import Preparing, sealed_request
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.coordinating import REQUEST, bucket, lab
from tests.made_models.random_models import WORDS
from tests.made_models.small_models import save_sae

__all__ = ["bucket", "lab"]


def preparing(lab: Path, bucket: Bucket) -> Preparing:
    return Preparing(bucket, ModelCatalog((lab / "models",)), PlanSettings(DatasetPlaces((lab / "data",))))


def test_the_model_and_the_saes_of_a_run_are_registered_as_their_files_say(lab: Path, bucket: Bucket) -> None:
    save_sae(lab / "models" / "known-sae", "topk", d_in=24, d_sae=32)
    prepares, request = preparing(lab, bucket), replace(REQUEST, saes=("known-sae",))
    asked = prepares.begin(prepares.plan(request), request).record.specification
    config = json.loads((lab / "models" / "tiny" / "config.json").read_text())
    texts = asked.tokenizer_sha256
    shape = [config[name] for name in ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions")]
    wired = ModelRecord("tiny", "", asked.weights_sha256, texts, "gpt2", *shape, "pre_ln", asked.config_sha256)
    assert list_models(bucket) == [wired]
    assert all([asked.weights_sha256, texts, asked.config_sha256])
    assert token_texts(bucket, texts).in_order([2, 3]) == list(WORDS[:2])
    [sae] = asked.saes
    assert list_saes(bucket) == [SaeModelRecord("known-sae", sae.sha256, "topk", "resid_post.1", 24, 32, "small")]


def test_a_capture_beyond_the_pinned_format_is_refused(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepares = preparing(lab, bucket)
    pinned = replace(prepares, settings=replace(prepares.settings, write_format=4))
    assert pinned.plan(REQUEST).record.format_version == 4
    monkeypatch.setattr("actstore_storage.format.specification._FEATURES", {"hashes of records": 5})
    with pytest.raises(BadRequest, match=r"hashes of records \(format version 5\)"):
        pinned.plan(REQUEST)


def test_a_wanted_run_that_is_let_go_meanwhile_is_none(lab: Path, tmp_path: Path) -> None:
    """Its request is listed, and gone when it is read, as where its capture has just ended."""

    class Late(LocalBucket):
        def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
            return sorted(["captures/a.json", "captures/z.json", *super().keys(prefix, after=after, until=until)])

    store = Late(tmp_path)
    store.put("captures/run.json", sealed_request(REQUEST))
    assert preparing(lab, store).wanted() == [(REQUEST, NO_PLACE)]


@pytest.mark.parametrize("begun", [False, True])
def test_a_wanted_run_that_is_given_up_is_told_as_far_as_it_came(begun: bool, lab: Path, bucket: Bucket) -> None:
    prepares = preparing(lab, bucket)
    assert prepares.give_up("run") is None
    if begun:
        prepares.begin(prepares.plan(REQUEST), REQUEST)
    else:
        bucket.put("captures/run.json", sealed_request(REQUEST))
    found = prepares.give_up("run")
    assert found is not None
    assert (found.run, found.state, found.shards_committed, found.shards_total) == ("run", "cancelled", 0, 6 * begun)
    assert prepares.wanted() == []
    assert list_runs(bucket) == ["run"] * begun
    assert prepares.give_up("run") is None


def test_a_request_is_kept_under_the_name_that_its_run_got(lab: Path, bucket: Bucket) -> None:
    prepares, unnamed = preparing(lab, bucket), replace(REQUEST, run="")
    for request in (unnamed, unnamed):  # again, as where it is submitted to finish what is there
        name = prepares.begin(prepares.plan(request), request).record.run
        assert prepares.wanted() == [(replace(REQUEST, run=name), NO_PLACE)]
    prepares.unwant(name)
    assert prepares.wanted() == []


def test_a_request_that_no_version_reads_any_more_is_replaced_when_its_run_begins(lab: Path, bucket: Bucket) -> None:
    """Or a coordinator that crashed would leave a run that the next one does not finish."""
    bucket.put("captures/run.json", seal({"run": "run", "model": "tiny"}))
    prepares = preparing(lab, bucket)
    assert prepares.wanted() == []
    prepares.begin(prepares.plan(REQUEST), REQUEST)
    assert prepares.wanted() == [(REQUEST, NO_PLACE)]
