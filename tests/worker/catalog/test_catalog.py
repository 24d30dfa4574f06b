"""SAEs by folder, by file and by their place on the hub, of which nothing but an SAE's own files is fetched."""

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from actstore_storage.errors import BadRequest, NotThere
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.sae.files import find_saes
from actstore_worker.sae.formats.loading import load_sae
from tests.made_models.sae_formats import save_gemma_scope, save_openai
from tests.made_models.small_models import save_sae

GEMMA = "google/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_82"


def catalog(*roots: Path) -> ModelCatalog:
    return ModelCatalog(roots)


def test_an_sae_is_found_by_folder_and_by_file(tmp_path: Path) -> None:
    save_sae(tmp_path / "flat", "standard")
    save_gemma_scope(tmp_path / GEMMA)
    for layer in (1, 2):
        save_openai(tmp_path / "openai/resid_post_mlp_v5_32k/autoencoders" / f"{layer}.pt")
    found = catalog(tmp_path)
    openai = "openai/resid_post_mlp_v5_32k/autoencoders/2.pt"
    assert found.saes() == ["flat", GEMMA, openai.replace("2.pt", "1.pt"), openai]
    assert found.find_sae(GEMMA) == tmp_path / GEMMA
    assert found.find_sae(openai) == tmp_path / openai
    sae = load_sae(found.find_sae(openai), openai)
    assert (sae.name, sae.format, str(sae.site)) == (openai, "openai", "resid_post.2")


def test_a_folder_of_several_is_found_and_not_read(tmp_path: Path) -> None:
    for layer in (1, 2):
        save_openai(tmp_path / "many" / f"{layer}.pt")
    with pytest.raises(BadRequest, match=r"1\.pt \(openai\).*name the file") as refused:
        load_sae(catalog(tmp_path).find_sae("many"), "many")
    assert (refused.value.reason, refused.value.details["field"]) == ("SAE_UNSUPPORTED", "format")


def test_what_is_no_sae_is_said_with_what_there_is(tmp_path: Path) -> None:
    save_sae(tmp_path / "flat", "standard")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "flat/cfg.json", "owner/repository/deep"):
        with pytest.raises(NotThere) as missing:
            catalog(tmp_path).find_sae(name)
        assert (missing.value.reason, missing.value.details["allowed"]) == ("SAE_NOT_FOUND", "flat")
    (tmp_path / "flat/cfg.json").unlink()
    with pytest.raises(BadRequest, match=r"cfg\.json .* it is missing"):
        load_sae(catalog(tmp_path).find_sae("flat"), "flat")
    with pytest.raises(BadRequest, match="no files of a known format"):
        load_sae(tmp_path / "empty", "empty")


@pytest.mark.parametrize(
    "within", ["layer_3/width_16k/average_l0_82", "layer_3/width_16k/average_l0_82/params.npz", ""]
)
def test_from_the_hub_comes_one_sae_alone(within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is a stand-in with the hub's own way of matching names: the hub cannot be asked in a test."""
    repository = tmp_path / "hub"
    for place in (
        "layer_3/width_16k/average_l0_82",
        "layer_3/width_16k/average_l0_9",
        "layer_33/width_16k/average_l0_82",
    ):
        save_gemma_scope(repository / place)
    save_gemma_scope(repository)
    (repository / "layer_3/width_16k/average_l0_82/code.py").write_text("raise SystemExit")
    asked: list[Any] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        for file in (path for path in repository.rglob("*") if path.is_file()):
            relative = file.relative_to(repository).as_posix()
            if any(fnmatch.fnmatch(relative, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / "cache" / relative)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    hub = ModelCatalog((), allow_hub=True)
    name = f"owner/repository/{within}".rstrip("/")
    found = hub.find_sae(name)
    assert (asked, found) == ([("owner/repository", None)], tmp_path / "cache" / within)
    assert [files.format for files in find_saes(found)] == ["gemma_scope"]
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["params.npz"]
    with pytest.raises(NotThere) as missing:
        hub.find_sae("owner/repository/layer_4")
    assert missing.value.reason == "SAE_NOT_FOUND"
    with pytest.raises(NotThere):
        ModelCatalog(()).find_sae(name)  # where the hub is not allowed, nothing asks it
    assert len(asked) == 2


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"encoder.weight": torch.zeros(2, 2), "harm": Harm()}, tmp_path / "3.pt")
    with pytest.raises(BadRequest, match=r"3\.pt .* cannot be read") as refused:
        load_sae(tmp_path / "3.pt", "harmful")
    assert refused.value.reason == "SAE_UNSUPPORTED"
    assert not (tmp_path / "harm").exists()
