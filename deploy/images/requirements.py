"""Prints what a package of this project needs from others, one requirement a line: `requirements.py EXTRA...`.

An image installs these before the project itself, so that a change of the code leaves the large layers as they are.
`--only NAME` prints one distribution alone, and `--without NAME` leaves it out. Only Python's own library is used.
"""

import argparse
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path("pyproject.toml")


def requirements(project: dict[str, object], extras: Iterable[str]) -> Iterator[str]:
    """Yields the requirements of a project with some extras, those of extras that they name among them."""
    found = project["optional-dependencies"]
    assert isinstance(found, dict)  # noqa: S101
    for one in (one for extra in extras for one in found[extra]):
        inner = re.fullmatch(rf"{project['name']}\[([\w,]+)\]", one)
        yield from requirements({**project, "dependencies": []}, inner[1].split(",")) if inner else [one]
    own = project["dependencies"]
    assert isinstance(own, list)  # noqa: S101
    yield from own


def name_of(requirement: str) -> str:
    """The name of the distribution, without version and extras."""
    return re.split(r"[\[<>=~!; ]", requirement)[0].lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="+")
    parser.add_argument("--only")
    parser.add_argument("--without")
    options = parser.parse_args()
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for one in dict.fromkeys(requirements(project, options.extras)):
        if options.only in (None, name_of(one)) and name_of(one) != options.without:
            print(one)


if __name__ == "__main__":
    main()
