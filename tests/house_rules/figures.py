"""The figures of the house: `make figures` prints them, each beside what it should be at most.

They are for whoever owns the code next: it shows early when one more field or question costs more than the last. What
must hold is a rule of its own, and not only a figure: see the tests beside this file.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.house_rules import python_files
from tests.house_rules.import_graph import by_room, circles, import_graph, way_round
from tests.house_rules.touched_files import FIELDS, PRODUCT, QUESTIONS, Probe, touched

FIELD_FILES = 4
QUESTION_FILES = 7
FOLDER_FILES = 12
FUNCTION_LINES = 6
FILE_LINES = 350
# By verb of make, which writes what it took into .figures. With `make check` and the installation, CI has 20 minutes.
TEST_SECONDS = {"test": 540, "test-all": 900}
MEASURED = Path(".figures")


@dataclass(frozen=True)
class Figure:
    """One number, what it should be at most, and what makes it up."""

    name: str
    value: float | None
    """None where nothing was measured; the details then say how to measure it."""
    most: float
    details: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.value is not None and self.value <= self.most


def figures(root: Path) -> Iterator[Figure]:
    """Measures everything that needs no test to run; the seconds of the tests are those of their last complete run."""
    yield from (probed(probe, FIELD_FILES, root) for probe in FIELDS)
    yield from (probed(probe, QUESTION_FILES, root) for probe in QUESTIONS)
    yield fullest_folder(python_files.written(root))
    yield from circles_of(root, python_files.wheel_packages(root))
    product = python_files.written(root, PRODUCT)
    yield median_function(root / path for path in product)
    yield longest_file(root, product)
    yield from (seconds(verb, most, root / MEASURED) for verb, most in TEST_SECONDS.items())


def probed(probe: Probe, most: int, root: Path) -> Figure:
    """Counts the files that know of a field or a question; one that the contract lacks has another name by now."""
    paths = touched(probe, root)
    if not any(path.suffix == ".proto" for path in paths):
        return Figure(
            f"files that know {probe.subject}", None, most, ("the contract has no such name: see touched_files.py",)
        )
    return Figure(f"files that know {probe.subject}", len(paths), most, tuple(map(str, paths)))


def fullest_folder(paths: Iterable[Path]) -> Figure:
    """Counts the Python files of the fullest folder, and names all that have too many."""
    counts = python_files.files_by_folder(paths).most_common()
    details = tuple(f"{folder}: {count}" for folder, count in counts if count > FOLDER_FILES)
    return Figure("files of the fullest folder", counts[0][1], FOLDER_FILES, details)


def circles_of(root: Path, packages: Iterable[Path]) -> Iterator[Figure]:
    """Counts the circles of modules, then those that show of rooms alone; of each it names the shortest way round."""
    graph = import_graph(python_files.modules(root, packages))
    ways = [_way(graph, circle) for circle in circles(graph)]
    yield Figure("circles of modules", len(ways), 0, tuple(ways))
    rooms = [_way(room, circle) for room in by_room(graph).values() for circle in circles(room)]
    beside = tuple(way for way in rooms if way not in ways)
    yield Figure("circles of rooms", len(beside), 0, beside)


def _way(graph: dict[str, set[str]], circle: set[str]) -> str:
    return f"{len(circle)}: {' > '.join(way_round(graph, circle))}"


def median_function(paths: Iterable[Path]) -> Figure:
    """Tells the median length of a function of the product."""
    lines = [lines for path in paths for _, lines in python_files.functions(path)]
    return Figure("median lines of a function", median(lines), FUNCTION_LINES)


def longest_file(root: Path, paths: Iterable[Path]) -> Figure:
    """Counts the lines of the product's longest file, and names all that are too long."""
    lengths = sorted(((lines, path) for path, lines in python_files.file_lengths(root, paths).items()), reverse=True)
    details = tuple(f"{path}: {lines}" for lines, path in lengths if lines > FILE_LINES)
    return Figure("lines of the longest file", lengths[0][0], FILE_LINES, details)


def seconds(verb: str, most: int, measured: Path) -> Figure:
    """Reads what the last complete `make VERB` took, as it wrote it down."""
    name, path = f"seconds of make {verb}", measured / f"{verb}.json"
    if not path.exists():
        return Figure(name, None, most, (f"make {verb} writes them down",))
    last = json.loads(path.read_text())
    where = f"on {last['processors']} processors, at commit {last['commit'] or 'unknown'}"
    return Figure(name, last["seconds"], most, (where,))


def line(figure: Figure) -> str:
    """Writes a figure as a line of the table, with what makes it up below it."""
    value = "?" if figure.value is None else f"{figure.value:g}"
    verdict = "" if figure.holds else "  MISSED" if figure.value is not None else "  NOT KNOWN"
    return "\n    ".join([f"{figure.name:56} {value:>6}  of at most {figure.most:g}{verdict}", *figure.details])


if __name__ == "__main__":
    for found in figures(python_files.ROOT):
        print(line(found))
