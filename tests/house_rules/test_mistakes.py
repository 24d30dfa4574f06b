"""Type checkers find plausible mistakes in a researcher's script: wrong words, misspelt arguments, other types.

Each file in `mistakes/` is such a script. A line of it that ends in MARK is a mistake, and the others are right.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MARK = "# wrong"
MISTAKES = "tests/house_rules/mistakes"


def _marked(root: Path) -> Iterator[tuple[str, int]]:
    for path in sorted((root / MISTAKES).glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.endswith(MARK):
                yield path.name, number


def test_each_mistake_is_found_and_nothing_else(root: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", MISTAKES]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    found = re.findall(r"mistakes/(\w+\.py):(\d+): error:", done.stdout)
    wrong = set(_marked(root))
    assert len(wrong) > 40
    assert {(name, int(number)) for name, number in found} == wrong, done.stdout + done.stderr
