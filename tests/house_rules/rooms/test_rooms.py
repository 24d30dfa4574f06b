"""ARCHITECTURE.md shows the rooms and files as they are, each with what it says of itself, in the order of imports."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.house_rules.rooms.house import Entry, House, layers, read_house, sentence
from tests.house_rules.rooms.page import PAGE, WIDTH, files, picture, replaced

Houses = Callable[[Mapping[str, str]], House]


@pytest.fixture(scope="module")
def house(root: Path, packages: list[Path]) -> House:
    return read_house(root, packages)


def test_the_architecture_page_shows_the_house_as_it_is(root: Path, house: House) -> None:
    page = (root / PAGE).read_text()
    assert page == replaced(page, house), "run `make rooms`"


def test_every_room_and_file_says_what_it_is(house: House) -> None:
    assert [name for name, path in house.files.items() if not sentence(path)] == []


@pytest.fixture
def house_of(tmp_path: Path) -> Houses:
    """Makes a house of packages from files, by their path and their text."""

    def house(texts: Mapping[str, str]) -> House:
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return read_house(tmp_path, sorted({Path(Path(name).parts[0]) for name in texts}))

    return house


SMALL = {
    "low/__init__.py": '"""The lower."""',
    "high/__init__.py": '"""The higher."""\nfrom high.door import open',
    "high/door.py": '"""The door."""\nimport high.room.inner.part, low',
    "high/alone.py": '"""Alone."""',
    "high/room/__init__.py": '"""The room."""',
    "high/room/b.py": '"""B."""\nfrom high.room import a',
    "high/room/a.py": '"""A."""',
    "high/room/inner/__init__.py": '"""The inner room."""',
    "high/room/inner/part.py": '"""A part."""\nimport high.room.b',
}


def test_rooms_stand_above_what_they_import_and_files_go_by_name(house_of: Houses) -> None:
    assert list(house_of(SMALL).entries("high")) == [
        Entry("door.py", "The door."),
        Entry("alone.py", "Alone."),
        Entry("room/inner/", "The inner room.", (Entry("part.py", "A part."),)),
        Entry("room/", "The room.", (Entry("a.py", "A."), Entry("b.py", "B."))),
    ]


def test_each_room_and_file_has_a_line_below_its_package(house_of: Houses) -> None:
    lines = files(house_of(SMALL)).splitlines()
    assert lines[:5] == ["### `high`", "", "The higher.", "", "- `door.py` The door."]
    assert lines[-7:-3] == ["- **`room/`** The room.", "  - `a.py` A.", "  - `b.py` B.", ""]
    assert lines[-3:] == ["### `low`", "", "The lower."]


def test_packages_are_boxes_side_by_side_above_what_they_import(house_of: Houses) -> None:
    drawn = picture(house_of(SMALL | {"beside/__init__.py": "", "beside/one.py": "import low"})).splitlines()
    assert [[word for word in line.split() if word[0] not in "│┌└─┐┘"] for line in drawn] == [
        ["beside", "high"],
        ["one", "door"],
        ["alone", "room/"],
        [],
        ["low"],
        [],
    ]


def test_parts_lie_in_layers_as_low_as_they_can() -> None:
    graph = {"a": {"b", "c"}, "b": {"d"}, "c": set(), "d": {"elsewhere"}}
    assert layers("abcd", graph) == [["a"], ["b"], ["c", "d"]]


def test_a_circle_is_one_layer_with_what_stands_above_it() -> None:
    assert layers("abcd", {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}}) == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize(
    ("docstring", "first"),
    [
        ("One. Two.", "One."),
        ("Is it\nso? Yes.", "Is it so?"),
        ("What `a.py` has of 0.5\n\nMore.", "What `a.py` has of 0.5"),
    ],
)
def test_the_first_sentence_may_take_lines_and_end_with_the_paragraph(
    tmp_path: Path, docstring: str, first: str
) -> None:
    (tmp_path / "a.py").write_text(f'"""{docstring}"""')
    assert sentence(tmp_path / "a.py") == first


def test_what_stands_around_the_markers_stays(house_of: Houses) -> None:
    page = "a\n<!-- picture: written by `make rooms` -->old<!-- end of picture -->\nb\n"
    page += "<!-- files: written by `make rooms` -->old<!-- end of files -->\nc"
    new = replaced(page, house_of(SMALL))
    assert "old" not in new
    assert [line for line in new.splitlines() if line in "abc" and line] == ["a", "b", "c"]
    assert replaced(new, house_of(SMALL)) == new


def test_a_page_without_its_markers_is_refused(house_of: Houses) -> None:
    with pytest.raises(ValueError, match="lacks <!-- files"):
        replaced("<!-- picture: written by `make rooms` --><!-- end of picture -->", house_of(SMALL))


def test_the_picture_is_no_wider_than_the_page(house: House) -> None:
    assert max(map(len, picture(house).splitlines())) <= WIDTH
