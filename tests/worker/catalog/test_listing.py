"""What a capture can name, in folders that hold other things as well."""

import json
from pathlib import Path

import pytest

from actstore_api.records.capture import FoundModel
from actstore_storage.bucket import Bucket
from actstore_worker.catalog import listing
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.catalog.listing import dataset_names, find_sources
from actstore_worker.datasets.places import DatasetPlaces
from tests.made_models.lens_folders import save_lens_folder
from tests.made_models.small_models import save_gpt2, save_sae


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    save_gpt2(folder / "owner" / "small")
    save_gpt2(folder / "trained")
    save_gpt2(folder / "trained" / "revisions" / "step8")
    save_lens_folder(folder / "attention-alone")
    save_sae(folder / "an-sae", "topk", d_in=8, d_sae=16)
    for name, config in {
        "no-weights": '{"model_type": "gpt2"}',
        "another-family": '{"model_type": "mamba"}',
        "no-json": "{",
        "nested": "[" * 100_000,
        "a-list": "[]",
        "a-type-of-another-type": '{"model_type": ["gpt2"]}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config)
        if name != "no-weights":
            (folder / name / "model.safetensors").touch()
    (folder / "weights-alone").mkdir()
    (folder / "weights-alone" / "model.safetensors").touch()
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("text.jsonl", "notes.txt", "deep/er/part-0.parquet", "saved/state.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": "a"}))
    for name in ("picture.png", ".hidden.txt", "pictures/one.png", ".cache/a.txt", "empty.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"" if name == "empty.txt" else b"x")
    (folder / "nothing").mkdir()
    (folder / "outside").symlink_to(folder.parent)
    return folder


def test_models_that_are_whole_and_datasets_that_hold_documents(models: Path, data: Path) -> None:
    found = find_sources(ModelCatalog((models,), allow_hub=True), DatasetPlaces((data,)))
    assert found.models == (
        FoundModel("attention-alone", "", "attention_only"),
        FoundModel("owner/small", "", "gpt2"),
        FoundModel("trained", "", "gpt2"),
        FoundModel("trained", "step8", "gpt2"),
    )
    assert found.saes == ("an-sae",)
    assert found.datasets == ("deep", "notes.txt", "saved", "text.jsonl")
    assert (found.hub_allowed, found.truncated) == (True, False)


def test_what_is_listed_can_be_named(models: Path, data: Path) -> None:
    catalog, places = ModelCatalog((models,)), DatasetPlaces((data,))
    found = find_sources(catalog, places)
    for model in found.models:
        assert catalog.find_model(model.name, model.revision)
    for dataset in set(found.datasets) - {"saved"}:  # which is not whole
        assert places.find(dataset).files


def test_datasets_of_a_store(s3_bucket: Bucket) -> None:
    for key in ("text.jsonl", "picture.png", "folder/part-0.jsonl"):
        s3_bucket.put(key, b'{"text": "a"}')
    places = DatasetPlaces(stores=(s3_bucket,))
    assert dataset_names(places) == ["folder", "text.jsonl"]
    assert all(places.find(name).files for name in dataset_names(places))


def test_folders_of_any_size_are_told_in_time(
    models: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(listing, "LISTED_MAX", 2)
    found = find_sources(ModelCatalog((models,)), DatasetPlaces((data, tmp_path / "gone")))
    assert (len(found.models), found.datasets, found.truncated) == (2, ("deep", "notes.txt"), True)
    monkeypatch.setattr(listing, "_LOOKED_AT_MAX", 0)
    assert dataset_names(DatasetPlaces((data,))) == ["notes.txt", "text.jsonl"]
