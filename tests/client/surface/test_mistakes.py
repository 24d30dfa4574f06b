"""Type checkers find plausible mistakes in a researcher's script: wrong words, misspelt arguments, other types.

Each file in `mistakes/` is such a script. A line of it that ends in MARK is a mistake, and the others are right.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MARK = "# wrong"
MISTAKES = Path(__file__).parent / "mistakes"
ROOT = Path(__file__).parents[3]


def _marked() -> Iterator[tuple[str, int]]:
    for path in sorted(MISTAKES.glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.endswith(MARK):
                yield path.name, number


def test_each_mistake_is_found_and_nothing_else() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", str(MISTAKES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"mistakes/(\w+\.py):(\d+): error:", done.stdout)
    wrong = set(_marked())
    assert len(wrong) > 40
    assert {(name, int(number)) for name, number in found} == wrong, done.stdout + done.stderr
