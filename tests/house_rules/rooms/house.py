"""The rooms of the house from top to bottom: which there are, what lies in each, and what each says that it is.

A room is a package, and what stands above another imports from it. Python's own statements decide both, so that a page
made of this can be held against the code.
"""

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.house_rules.import_graph import Graph, by_room, import_graph
from tests.house_rules.python_files import modules, parsed


@dataclass(frozen=True)
class Entry:
    """A room or a file, by the name that it has within its package, and the first sentence of its docstring."""

    name: str
    sentence: str
    files: tuple["Entry", ...] = ()


@dataclass(frozen=True)
class House:
    """Packages' modules, who imports whom, and the same for the parts of each room."""

    files: dict[str, Path]
    graphs: dict[str, dict[str, set[str]]]

    def parts(self, room: str) -> set[str]:
        """Returns the rooms in a room, with itself for the files in it; at the top of a package each file is a part."""
        inside = {name for name in self.files if name.rpartition(".")[0] == room}
        rooms = {name for name in inside if self.is_room(name)}
        return rooms | {room} if "." in room else inside

    def is_room(self, name: str) -> bool:
        return self.files[name].name == "__init__.py"

    def layers(self, room: str) -> list[list[str]]:
        """Returns a room's parts in layers, from top to bottom."""
        return layers(self.parts(room), self.graphs.get(room, {}))

    def entries(self, room: str) -> Iterator[Entry]:
        """Yields a room's parts with all that lies in them, from top to bottom."""
        for part in (part for layer in self.layers(room) for part in layer):
            if part != room and self.is_room(part):
                yield from self.entries(part)
            else:
                yield self.entry(part)

    def entry(self, name: str) -> Entry:
        inside = sorted(other for other in self.files if other.rpartition(".")[0] == name and not self.is_room(other))
        return Entry(self.shown(name), sentence(self.files[name]), tuple(map(self.entry, inside)))

    def shown(self, name: str) -> str:
        """Returns a room's path within its package, `live/saes/`, or a file's own name."""
        _, *inner = name.split(".")
        return "/".join([*inner, ""]) if self.is_room(name) else f"{inner[-1]}.py"


def read_house(root: Path, packages: Iterable[Path]) -> House:
    """Reads the packages that the paths name, relative to the root. The room "" holds the packages."""
    files = modules(root, packages)
    return House(files, by_room(import_graph(files)))


def layers(parts: Collection[str], graph: Graph) -> list[list[str]]:
    """Returns parts in layers, from top to bottom: what a part imports lies below it, and as low as it can.

    What goes round in a circle has no order, and makes one layer with all that stands above it.
    """
    left, found = set(parts), list[list[str]]()
    while left:
        lowest = {part for part in left if left.isdisjoint(graph.get(part, ()))} or left
        found.insert(0, sorted(lowest))
        left = left - lowest
    return found


def sentence(path: Path) -> str:
    """Returns the first sentence of a module's docstring, or nothing where it has none."""
    paragraph = " ".join((ast.get_docstring(parsed(path)) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) ", paragraph, maxsplit=1)[0]
