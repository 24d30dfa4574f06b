"""SAEs whose files lie in the bucket: those that were trained from it. Fetched once, into a folder of this machine."""

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.registry.saes import SaeModelRecord, fetch_sae_files, find_registered_sae
from actstore_worker.files.stamps import Stamp
from actstore_worker.sae.files import find_saes, stamp_of_saes

if TYPE_CHECKING:  # who only looks for files has no use for torch
    from actstore_worker.sae.autoencoder import SparseAutoencoder

# Where they are fetched to unless a setting says otherwise.
SAE_CACHE = Path("~/.cache/actstore/saes").expanduser()
# Of SAEs that were looked at last: a hash reads all of an SAE, which is asked for with each question.
_HASHES_KEPT = 256


@dataclass(frozen=True)
class StoredSaes:
    """`cache` has a folder for each SAE's hash. Several processes may share it; what else writes there is noticed."""

    bucket: Bucket
    cache: Path

    def find(self, name: str) -> Path | None:
        """The one that is registered under the name; None where there is none, or where its files lie elsewhere."""
        record = find_registered_sae(self.bucket, name)
        return None if record is None else self.fetch(name, record.sha256)

    def fetch(self, name: str, sha256: str) -> Path | None:
        """The one with that hash, registered or not. Errors: CorruptObject where its files have another hash."""
        found = self.cache / sha256
        if _is_whole(found):
            return found
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache) as scratch:
            folder = Path(scratch) / "sae"
            folder.mkdir()
            if not fetch_sae_files(self.bucket, name, sha256, folder):
                return None
            if [files.sha256 for files in find_saes(folder)] != [sha256]:
                raise CorruptObject(
                    f"the files of SAE {name!r} in {self.bucket.address} do not match the hash under which they were "
                    "stored",
                    field="object",
                    value=sha256,
                )
            with suppress(OSError):  # another process was first
                if found.is_dir() and not _is_whole(found):
                    found.rename(Path(scratch) / "damaged")
                folder.rename(found)
        return found


def sae_record(sae: "SparseAutoencoder") -> SaeModelRecord:
    """What the bucket's registry says of an SAE."""
    return SaeModelRecord(
        name=sae.name,
        sha256=sae.sha256,
        architecture=sae.architecture,
        site=str(sae.site),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        model=sae.model,
    )


def _is_whole(folder: Path) -> bool:
    """Whether the SAE there is the one whose hash the folder has for a name."""
    return folder.is_dir() and _sha256s(folder, stamp_of_saes(folder)) == (folder.name,)


@lru_cache(maxsize=_HASHES_KEPT)
def _sha256s(folder: Path, stamp: Stamp) -> tuple[str, ...]:  # noqa: ARG001  while its files have that stamp
    return tuple(files.sha256 for files in find_saes(folder))
