"""Who imports whom, and where imports go round in a circle.

Every import statement counts, wherever it stands: one inside a function or under TYPE_CHECKING hides a circle from
Python, and not from whoever has to understand the two modules apart.

A module depends on what it names. That Python also runs the `__init__` of each folder on the way does not count, or a
package whose `__init__` shows its parts could have no two parts that know each other.
"""

import ast
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tests.house_rules.python_files import parsed

Graph = Mapping[str, Collection[str]]


def import_graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Returns for each module, by dotted name, those of the given modules that it imports."""
    return {name: set(_imported(name, path, modules)) - {name} for name, path in modules.items()}


def _imported(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parsed(path)):
        for target in _targets(node, package):
            yield from _known(target, modules)


def _targets(node: ast.AST, package: str) -> Iterator[str]:
    """Yields the dotted names that an import statement asks for; `from a import b` asks for a.b, whatever b is."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            origin = ".".join(part for part in (_ancestor(package, level), module) if part)
            yield from (f"{origin}.{alias.name}" for alias in names)


def _ancestor(package: str, level: int) -> str:
    """Returns the package that so many dots of a relative import mean; none of an absolute one."""
    return ".".join(package.split(".")[: package.count(".") + 2 - level]) if level else ""


def _known(target: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yields the module that a dotted name lies in: `a.b.Class` is of `a.b`, or of `a` where that defines b."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    if target:
        yield target


def by_room(graph: Graph) -> dict[str, dict[str, set[str]]]:
    """Returns for each package the graph of its parts: each sub-package as one, and the modules beside these as one.

    Circles of rooms show here that no module shows. Modules at the top of a distribution's package are parts of their
    own: what all rooms are built on stands there beside what is built on them. The room "" holds those packages.
    """
    rooms: dict[str, dict[str, set[str]]] = {}
    for module, imported in graph.items():
        for other in imported:
            room, source, target = _parting(module, other, graph)
            if source != target:
                rooms.setdefault(room, {}).setdefault(source, set()).add(target)
    return rooms


def _parting(module: str, other: str, graph: Graph) -> tuple[str, str, str]:
    """Returns the innermost package that both modules are in, and the part of it that each is in."""
    ours, theirs = _inside(module, graph), _inside(other, graph)
    depth = next(index for index, (our, their) in enumerate(zip(ours, theirs, strict=False)) if our != their)
    return ".".join(ours[:depth]), _part(ours, depth), _part(theirs, depth)


def _part(inside: list[str], depth: int) -> str:
    """Returns the part of a room, by the room's own name where the module stands beside its sub-packages."""
    is_beside = depth > 1 and len(inside) == depth + 1
    return ".".join(inside[:depth] if is_beside else inside[: depth + 1])


def _inside(module: str, graph: Graph) -> list[str]:
    """Returns a name's parts; a package's own module, its `__init__`, is one of the things that lie in it."""
    is_package = any(other.startswith(f"{module}.") for other in graph)
    return [*module.split("."), "__init__"] if is_package else module.split(".")


def circles(graph: Graph) -> list[set[str]]:
    """Returns the groups of nodes that all reach each other, the largest first; in a graph without circles, none."""
    reached = {node: _reachable(graph, node) for node in graph}
    groups = {frozenset(other for other in ways if node in reached.get(other, ())) for node, ways in reached.items()}
    return sorted((set(group) for group in groups if group), key=lambda group: (-len(group), min(group)))


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(graph.get(node, ()))
    return found


def way_round(graph: Graph, circle: Collection[str]) -> list[str]:
    """Returns the shortest way from the first node of a circle back to it, both ends named."""
    start = min(circle)
    ways = deque([[start]])
    seen: set[str] = set()
    while True:
        way = ways.popleft()
        for node in sorted(graph.get(way[-1], ())):
            if node == start:
                return [*way, start]
            if node not in seen:
                seen.add(node)
                ways.append([*way, node])
