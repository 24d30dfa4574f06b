"""Files of SAEs that are made to harm: each is refused by name, soon, and before it takes memory."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actstore_storage.errors import BadRequest
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.sae.formats.loading import load_sae
from tests.abuse.files.hostile import IN_PLACE_OF_A_FILE, MEBIBYTE, link_out, long_header, refused
from tests.made_models.sae_formats import save_dictionary, save_openai
from tests.made_models.small_models import save_sae

LARGE = 300 * MEBIBYTE


def refusal(folder: Path, within: str = "") -> BadRequest:
    name = f"{folder.name}{within}"
    catalog = ModelCatalog((folder.parent,))
    error = refused(lambda: load_sae(catalog.find_sae(name), name))
    assert error.reason in ("SAE_UNSUPPORTED", "SAE_MISMATCH")
    return error


@pytest.mark.parametrize("kind", IN_PLACE_OF_A_FILE)
@pytest.mark.parametrize("file", ["actstore.json", "quality.json", "sparsity.safetensors"])
def test_what_is_not_a_file_of_its_folder_is_not_opened(tmp_path: Path, file: str, kind: str) -> None:
    sae = save_sae(tmp_path / "models" / "sae", "standard")
    IN_PLACE_OF_A_FILE[kind](sae / file)
    assert file in refusal(sae).message


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_weights_and_configuration_may_not_lie_elsewhere(tmp_path: Path, file: str) -> None:
    sae = save_sae(tmp_path / "models" / "sae", "standard")
    link_out(sae / file)
    assert f"{file} is a link to a place outside the model folders" in refusal(sae).message


def test_an_sae_reached_by_a_link_or_by_climbing_is_none(tmp_path: Path) -> None:
    save_sae(tmp_path / "outside", "standard")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "outside")
    catalog = ModelCatalog((tmp_path / "models",))
    assert refused(lambda: catalog.find_sae("link")).reason == "SAE_NOT_FOUND"
    assert refused(lambda: catalog.find_sae("../outside")).reason == "NAME_INVALID"


LENS: dict[str, tuple[Callable[[Path], object], str]] = {
    "header of a million tensors": (lambda sae: long_header(sae / "sae_weights.safetensors"), "its header has"),
    "large configuration": (
        lambda sae: (sae / "cfg.json").write_bytes(b'{"a": [' + b"[]," * (80 << 20) + b"1]}"),
        "the limit is 1048576",
    ),
    "nested configuration": (
        lambda sae: (sae / "cfg.json").write_text('{"a": ' + "[" * 500 + "]" * 500 + "}"),
        "nested more than 32 levels",
    ),
    "claims that are no numbers": (lambda sae: (sae / "quality.json").write_text('{"l0": NaN}'), "l0 is nan"),
}


@pytest.mark.parametrize("poison", LENS)
def test_a_poisoned_folder_is_refused_before_it_takes_memory(tmp_path: Path, poison: str) -> None:
    sae = save_sae(tmp_path / "models" / "sae", "standard")
    do, named = LENS[poison]
    do(sae)
    assert named in refusal(sae).message


def zeros(file: Path) -> None:
    np.savez_compressed(file, W_enc=np.zeros(LARGE // 4, np.float32))


def one_array_many_times(file: Path) -> None:
    """A thousand names in the list of an archive, each of the same bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("W_enc.npy", b"x" * MEBIBYTE)
        (part,) = archive.filelist
        archive.filelist += [part] * 1000


def false_shape(file: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"x")


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (zeros, "bytes that become"),
        (one_array_many_times, "bytes that become"),
        (false_shape, "cannot be read"),
        (lambda file: np.savez(file, W_enc=np.array([object()], object)), "Object arrays cannot be loaded"),
    ],
    ids=["zeros", "many times", "shape", "pickle"],
)
def test_arrays_that_become_large_are_refused(tmp_path: Path, write: Callable[[Path], object], named: str) -> None:
    (tmp_path / "models" / "sae").mkdir(parents=True)
    write(tmp_path / "models" / "sae" / "params.npz")
    assert named in refusal(tmp_path / "models" / "sae").message


class Made:
    """What is made when it is unpickled."""

    def __init__(self, *made: Any) -> None:
        self._made = made

    def __reduce__(self) -> Any:
        return self._made


def tables_of_tables() -> Any:
    """2^40 parts, each of which is said twice by the next."""
    found: Any = ["part"]
    for _ in range(40):
        found = [found, found]
    return found


def compressed(file: Path) -> None:
    torch.save({"pre_bias": torch.zeros(LARGE // 4)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


PICKLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda file: torch.save({"a": Made(os.mkdir, (str(file.parent / "run"),))}, file), "names 'posix mkdir'"),
    "bytes": (lambda file: torch.save({"a": Made(bytearray, (LARGE,))}, file), "names '__builtin__ bytearray'"),
    "tensor": (lambda file: torch.save({"a": Made(torch.Tensor, (9_000, 9_000))}, file), "names 'torch Tensor'"),
    "one number": (
        lambda file: torch.save({"encoder.weight": torch.zeros(1, 1).expand(LARGE, 16)}, file),
        "of which it holds 4",
    ),
    "tables": (lambda file: torch.save({"activation": tables_of_tables()}, file), "has more than 10000 parts"),
    "compressed": (compressed, "torch.save does not compress"),
    "long table": (lambda file: torch.save({"activation": "x" * MEBIBYTE}, file), "the limit is 1048576"),
    "old": (
        lambda file: torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=False),
        "not in the format of torch 1.6 and later",
    ),
}


@pytest.mark.parametrize("poison", PICKLES)
def test_a_poisoned_pickle_is_refused_before_it_takes_memory(tmp_path: Path, poison: str) -> None:
    write, named = PICKLES[poison]
    file = tmp_path / "models" / "sae" / "3.pt"
    file.parent.mkdir(parents=True)
    write(file)
    assert named in refusal(file.parent, "/3.pt").message
    assert not (file.parent / "run").exists()


def test_a_key_of_tuples_in_tuples_is_not_hashed(tmp_path: Path) -> None:
    """Only a pickle can say it: each level is fetched twice from the pickle's memory."""
    level = b"h\x00h\x00\x86q\x00"  # fetches entry 0 twice, makes a pair, and keeps it as entry 0
    table = b"\x80\x02}))\x86q\x00" + 40 * (b"0" + level) + b"K\x01s."
    file = tmp_path / "models" / "sae" / "3.pt"
    file.parent.mkdir(parents=True)
    torch.save({}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, table if name.endswith("data.pkl") else data)
    assert "has the same tuple in several places" in refusal(file.parent, "/3.pt").message


@pytest.mark.parametrize(
    "save", [save_dictionary, lambda folder: save_openai(folder / "resid_post_mlp_v5_32k" / "3.pt")]
)
def test_published_pickles_are_read(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    assert load_sae(save(tmp_path / "models" / "resid_post_layer_1"), "sae").d_sae
