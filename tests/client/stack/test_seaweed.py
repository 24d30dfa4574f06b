"""The SeaweedFS of `actstore up --s3`: what a lab keeps there outlives the server."""

from pathlib import Path

from actstore._stack.seaweed import SeaweedFS
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket


def opened(weed: SeaweedFS) -> Bucket:
    access = S3Access(weed.endpoint, weed.access_key, weed.secret_key, secure=False)
    return open_bucket(f"s3://{weed.bucket}/lab", access)


def test_a_second_start_on_the_same_folder_has_what_the_first_one_stored(tmp_path: Path) -> None:
    stored = {f"runs/a/{size}": bytes([size % 251]) * size for size in (0, 1, 5_000, 3_000_000)}
    with SeaweedFS(tmp_path) as weed:
        for name, data in stored.items():
            opened(weed).put(name, data)
    with SeaweedFS(tmp_path) as weed:
        assert {name: opened(weed).get(name) for name in stored} == stored
