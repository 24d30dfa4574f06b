"""SAEs whose files are in the bucket, because they were trained from it. They are downloaded once to a folder of this
machine.
"""

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

if TYPE_CHECKING:  # code that only looks for files does not need torch
    from actstore_worker.sae.autoencoder import SparseAutoencoder

# The default folder for downloads.
SAE_CACHE = Path("~/.cache/actstore/saes").expanduser()
# The number of recently checked SAEs to remember: a hash reads the whole SAE, which is needed for each question.
_HASHES_KEPT = 256


@dataclass(frozen=True)
class StoredSaes:
    """Downloads SAEs. `cache` has a folder for each SAE's hash. Several processes may share it; foreign changes are
    detected.
    """

    bucket: Bucket
    cache: Path

    def find(self, name: str) -> Path | None:
        """The SAE that is registered under the name; None if there is none, or if its files are elsewhere."""
        record = find_registered_sae(self.bucket, name)
        return None if record is None else self.fetch(name, record.sha256)

    def fetch(self, name: str, sha256: str) -> Path | None:
        """The SAE with that hash, registered or not. Errors: CorruptObject if its files have another hash."""
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
    """Returns an SAE's record in the bucket's registry."""
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
    """Whether the SAE there has the hash that is the folder's name."""
    return folder.is_dir() and _sha256s(folder, stamp_of_saes(folder)) == (folder.name,)


@lru_cache(maxsize=_HASHES_KEPT)
def _sha256s(folder: Path, stamp: Stamp) -> tuple[str, ...]:  # noqa: ARG001  while its files have that stamp
    return tuple(files.sha256 for files in find_saes(folder))
