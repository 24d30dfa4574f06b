"""No circle of imports: they are found wherever they stand, and circles of modules and of rooms with them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.house_rules.import_graph import by_room, circles, import_graph, way_round
from tests.house_rules.python_files import modules

Graphs = Callable[[Mapping[str, str]], dict[str, set[str]]]


@pytest.fixture(scope="module")
def house(root: Path, packages: list[Path]) -> dict[str, set[str]]:
    return import_graph(modules(root, packages))


def test_no_modules_import_each_other_in_a_circle(house: dict[str, set[str]]) -> None:
    assert [way_round(house, circle) for circle in circles(house)] == []


def test_no_rooms_import_each_other_in_a_circle(house: dict[str, set[str]]) -> None:
    assert [way_round(room, circle) for room in by_room(house).values() for circle in circles(room)] == []


@pytest.fixture
def graph_of(tmp_path: Path) -> Graphs:
    """Makes the graph of a package `house` of files, by their path below it and their text."""

    def graph(files: Mapping[str, str]) -> dict[str, set[str]]:
        for name, text in files.items():
            (tmp_path / "house" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "house" / name).write_text(text)
        return import_graph(modules(tmp_path, [Path("house")]))

    return graph


@pytest.mark.parametrize(
    "statement",
    [
        "import house.b",
        "import house.b as other",
        "import os, house.b",
        "from house import b",
        "from house.b import thing",
        "from house.b import *",
        "from . import b",
        "from .b import thing",
        "def f():\n    from house import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.b import thing",
        "try:\n    import house.b\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_is_found_however_it_is_written(graph_of: Graphs, statement: str) -> None:
    graph = graph_of({"__init__.py": "", "a.py": statement, "b.py": ""})
    assert graph == {"house": set(), "house.a": {"house.b"}, "house.b": set()}


def test_relative_imports_begin_at_the_package(graph_of: Graphs) -> None:
    files = {
        "__init__.py": "",
        "top.py": "",
        "room/__init__.py": "from .part import thing",
        "room/part.py": "from ..top import thing\nfrom .. import top\nfrom . import thing",
    }
    graph = graph_of(files)
    assert graph["house.room"] == {"house.room.part"}
    assert graph["house.room.part"] == {"house.top", "house.room"}


def test_what_a_package_defines_is_of_its_init(graph_of: Graphs) -> None:
    graph = graph_of(
        {"__init__.py": "", "room/__init__.py": "", "room/b.py": "", "a.py": "from house.room import Thing"}
    )
    assert graph["house.a"] == {"house.room"}


def test_what_is_not_of_the_house_is_left_out(graph_of: Graphs) -> None:
    assert graph_of({"a.py": "import os\nfrom houses import b\nfrom __future__ import annotations"}) == {
        "house.a": set()
    }


LAZY = "def f():\n    import house.a"
CHECKED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house import a"


@pytest.mark.parametrize("back", ["import house.a", LAZY, CHECKED])
def test_a_circle_is_found_and_the_way_round_it(graph_of: Graphs, back: str) -> None:
    graph = graph_of({"a.py": "import house.b", "b.py": "import house.c", "c.py": back, "d.py": "import house.a"})
    assert circles(graph) == [{"house.a", "house.b", "house.c"}]
    assert way_round(graph, circles(graph)[0]) == ["house.a", "house.b", "house.c", "house.a"]


def test_the_way_round_is_the_shortest() -> None:
    graph = {"a": {"b", "z"}, "b": {"a"}, "z": {"y"}, "y": {"x"}, "x": {"a"}}
    assert way_round(graph, circles(graph)[0]) == ["a", "b", "a"]


def test_a_module_that_names_itself_is_no_circle(graph_of: Graphs) -> None:
    graph = graph_of({"room/__init__.py": "", "room/a.py": "import house.room.a"})
    assert graph["house.room.a"] == set()
    assert by_room(graph) == {}


def test_circles_apart_are_told_apart_the_largest_first() -> None:
    graph = {"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"e"}, "e": {"c", "a"}, "f": {"c"}}
    assert circles(graph) == [{"c", "d", "e"}, {"a", "b"}]


def test_two_ways_to_one_module_are_no_circle() -> None:
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_rooms_that_need_each_other_are_a_circle_that_no_module_shows(graph_of: Graphs) -> None:
    files = {"x/one.py": "import house.y.one", "y/one.py": "", "y/two.py": "import house.x.two", "x/two.py": ""}
    graph = graph_of(files)
    assert circles(graph) == []
    assert circles(by_room(graph)["house"]) == [{"house.x", "house.y"}]


def test_a_room_and_what_stands_beside_it_are_a_circle(graph_of: Graphs) -> None:
    graph = graph_of(
        {"lab.py": "import house.norms.profile", "norms/profile.py": "", "norms/plots.py": "import house.lab"}
    )
    assert circles(by_room(graph)["house"]) == [{"house.lab", "house.norms"}]


def test_what_a_room_is_built_on_may_stand_beside_it(graph_of: Graphs) -> None:
    files = {
        "__init__.py": "from house.lab import Lab",
        "lab.py": "import house.norms.profile",
        "norms/profile.py": "from house.errors import Error",
        "errors.py": "",
    }
    assert [circles(room) for room in by_room(graph_of(files)).values()] == [[]]


def test_a_room_in_a_room_and_the_modules_beside_it_are_a_circle(graph_of: Graphs) -> None:
    files = {"live/answers.py": "import house.live.saes.check", "live/saes/check.py": "import house.live.passes"}
    graph = graph_of(files | {"live/passes.py": ""})
    assert circles(graph) == []
    assert circles(by_room(graph)["house.live"]) == [{"house.live", "house.live.saes"}]


def test_modules_of_one_room_make_no_circle_of_rooms(graph_of: Graphs) -> None:
    graph = graph_of(
        {"room/a.py": "import house.room.b", "room/b.py": "from house.room import c", "room/__init__.py": ""}
    )
    assert by_room(graph) == {}


def test_a_part_that_asks_the_face_of_its_room_is_a_circle_where_the_face_shows_it(graph_of: Graphs) -> None:
    graph = graph_of({"room/__init__.py": "from .part import a", "room/part.py": "from house.room import b"})
    assert circles(graph) == [{"house.room", "house.room.part"}]
