"""A store that refuses the workers' keys, as who starts a stack meets it."""

from pathlib import Path
from typing import Self

import pytest

import actstore
from actstore._stack import seaweed as _seaweed
from actstore._stack import stack as _local_stack


class ReaderKeys(_seaweed.SeaweedFS):
    def __enter__(self) -> Self:
        super().__enter__()
        self.access_key, self.secret_key = self.reader_access_key, self.reader_secret_key
        return self


class WrongKeys(_seaweed.SeaweedFS):
    def __enter__(self) -> Self:
        super().__enter__()
        self.secret_key = "not-the-secret"
        return self


@pytest.mark.parametrize(
    ("keys", "says"),
    [(ReaderKeys, "may not write to s3://actstore"), (WrongKeys, "s3://actstore refuses these credentials")],
)
def test_workers_refuse_a_store_that_refuses_them(
    keys: type[_seaweed.SeaweedFS], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_local_stack, "SeaweedFS", keys)
    stack = actstore.LocalStack(s3=True, port=0, state_folder=tmp_path / "state")
    with pytest.raises(actstore.StackFailed, match="status 2 before it was ready") as caught:
        stack.start()
    said = [line for line in str(caught.value).splitlines() if "actstore_worker:" in line]
    assert len(said) == 1
    assert says in said[0]
    assert "Traceback" not in str(caught.value)
    assert "not-the-secret" not in str(caught.value)
    assert not (tmp_path / "state" / "stack.json").exists()
