"""Where the store is, and how it is reached: settings of every process that opens it."""

from dataclasses import dataclass, replace
from pathlib import Path

from actstore_storage.bucket.access import S3Access
from actstore_storage.errors import SettingsError
from actstore_storage.settings.checks import check_positive


@dataclass(frozen=True)
class StoreSettings:
    store: str
    """The bucket: a directory, or s3://bucket/prefix."""
    s3: S3Access | None = None
    """How to reach an S3 store; None for a directory."""

    def __post_init__(self) -> None:
        check_keys(self.store, self.s3)


def check_keys(store: str, s3: S3Access | None) -> None:
    """Refuses an S3 store without an endpoint, and an endpoint without keys."""
    if store.startswith("s3://") and s3 is None:
        raise SettingsError(
            f"ACTSTORE_STORE is {store}, so ACTSTORE_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY (or _CREDENTIALS_FILE) "
            "are required",
            field="ACTSTORE_S3_ENDPOINT",
        )
    if s3 is not None:
        check_positive(s3, "connect_seconds", "answer_seconds", "attempts", "connections")
    if s3 is not None and not s3.credentials_file:
        for name in ("access_key", "secret_key"):
            if not getattr(s3, name):
                variable = f"ACTSTORE_S3_{name.upper()}"
                message = f"{variable} is required, or ACTSTORE_S3_CREDENTIALS_FILE instead of both keys"
                raise SettingsError(message, field=variable)


def absolute(store: str, s3: S3Access | None) -> tuple[str, S3Access | None]:
    """With absolute paths, because Ray's workers run in folders of their own."""
    if s3 is not None and s3.credentials_file:
        # Links stay: a mounted secret is one, to a folder that is replaced with it.
        s3 = replace(s3, credentials_file=str(Path(s3.credentials_file).absolute()))
    return (store if "://" in store else str(Path(store).resolve())), s3
