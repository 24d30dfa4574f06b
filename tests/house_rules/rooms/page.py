"""What ARCHITECTURE.md shows of the house: its packages as boxes, and a line for each room and file."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from textwrap import wrap

from tests.house_rules.rooms.house import Entry, House

PAGE = "ARCHITECTURE.md"
WIDTH = 116
GAP = 2


def replaced(page: str, house: House) -> str:
    """Returns a page with what is said of the house between its markers as the house is now."""
    for name, text in (("picture", f"```\n{picture(house)}\n```"), ("files", files(house))):
        page = _between(page, f"<!-- {name}: written by `make rooms` -->", f"<!-- end of {name} -->", text)
    return page


def _between(page: str, begin: str, end: str, text: str) -> str:
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks {begin}, or {end} behind it")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def files(house: House) -> str:
    """Writes for each package a line for each room and file in it."""
    return "\n\n".join("\n".join(_listed(house, package)) for layer in house.layers("") for package in layer)


def _listed(house: House, package: str) -> Iterator[str]:
    yield f"### `{package}`\n\n{house.entry(package).sentence}\n"
    for entry in house.entries(package):
        yield _line(entry)
        yield from (f"  {_line(file)}" for file in entry.files)


def _line(entry: Entry) -> str:
    name = f"**`{entry.name}`**" if entry.name.endswith("/") else f"`{entry.name}`"
    return f"- {name} {entry.sentence}"


def picture(house: House) -> str:
    """Draws each package as a box of its layers; packages of one layer stand side by side, above what they import."""
    rows = [_side_by_side(house, layer) for layer in house.layers("")]
    return "\n".join(line.rstrip() for row in rows for line in row)


def _side_by_side(house: House, packages: Sequence[str]) -> Iterator[str]:
    width = (WIDTH + GAP) // len(packages) - GAP
    boxes = [list(_box(house, package, width)) for package in packages]
    for lines in zip_longest(*boxes, fillvalue=" " * width):
        yield (" " * GAP).join(lines)


def _box(house: House, package: str, width: int) -> Iterator[str]:
    """Draws one package. A layer of many parts takes several lines, which is no harm: none of them imports another."""
    yield f"┌─ {package} ".ljust(width - 1, "─") + "┐"
    for layer in house.layers(package):
        for line in wrap("  ".join(house.shown(part).removesuffix(".py") for part in layer), width - 4):
            yield f"│ {line:{width - 4}} │"
    yield "└".ljust(width - 1, "─") + "┘"
