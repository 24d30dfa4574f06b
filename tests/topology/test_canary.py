"""The canary against real workers: a capture, examples, norms and a sweep both ways are the golden ones."""

import shutil
from pathlib import Path

import pytest

from actstore import Lab
from actstore._canary import check
from tests.canary.slow import TEXTS

pytestmark = pytest.mark.stack


def test_real_workers_give_the_golden_numbers(lab: Lab, folder: Path) -> None:
    shutil.copy(TEXTS, folder / "data")
    verdict = check.canary(lab)
    assert verdict.right, verdict.wrong
