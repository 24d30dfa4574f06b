"""The figures of made-up houses, and how they are printed."""

import json
from pathlib import Path

from tests.house_rules.figures import (
    FILE_LINES,
    FOLDER_FILES,
    MEASURED,
    TEST_SECONDS,
    Figure,
    circles_of,
    figures,
    fullest_folder,
    line,
    longest_file,
    median_function,
    probed,
    seconds,
)
from tests.house_rules.python_files import ROOT, written
from tests.house_rules.touched_files import Probe


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_probe_counts_files(tmp_path: Path) -> None:
    _write(tmp_path, {"proto/a.proto": "sink_ratio", "workers/b.py": "sink_ratio", "workers/c.py": "other"})
    found = probed(Probe("x", ("sink_ratio",)), 2, tmp_path)
    assert (found.value, found.details, found.holds) == (2, ("proto/a.proto", "workers/b.py"), True)


def test_a_probe_of_what_the_contract_lacks_does_not_hold(tmp_path: Path) -> None:
    _write(tmp_path, {"workers/b.py": "sink_ratio"})
    found = probed(Probe("x", ("sink_ratio",)), 2, tmp_path)
    assert found.value is None
    assert not found.holds


def test_the_face_of_a_folder_does_not_count(tmp_path: Path) -> None:
    _write(tmp_path, {f"tests/room/m{index}.py": "" for index in range(FOLDER_FILES)} | {"tests/room/__init__.py": ""})
    assert fullest_folder(written(tmp_path)).holds
    _write(tmp_path, {"tests/room/one_more.py": "", "tests/room/inner/other.py": ""})
    assert fullest_folder(written(tmp_path)).details == (f"tests/room: {FOLDER_FILES + 1}",)


def test_a_circle_of_rooms_is_counted_beside_those_of_modules(tmp_path: Path) -> None:
    files = {
        "a.py": "import h.b",
        "b.py": "import h.a",
        "x/m.py": "import h.y.m",
        "y/m.py": "",
        "y/n.py": "import h.x.n",
    }
    _write(tmp_path, {f"client/h/{name}": text for name, text in (files | {"x/n.py": ""}).items()})
    modules, rooms = circles_of(tmp_path, [Path("client/h")])
    assert modules.details == ("2: h.a > h.b > h.a",)
    assert rooms.details == ("2: h.x > h.y > h.x",)


def test_the_median_is_of_all_functions(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {"a.py": "def f():\n    pass\n\n\nclass A:\n    async def g(self):\n        1\n        2\n", "b.py": ""},
    )
    assert median_function([tmp_path / "a.py", tmp_path / "b.py"]).value == 2.5


def test_the_longest_file_is_found(tmp_path: Path) -> None:
    _write(tmp_path, {"a.py": "1\n" * FILE_LINES, "b.py": "1\n" * (FILE_LINES + 1)})
    found = longest_file(tmp_path, [Path("a.py"), Path("b.py")])
    assert (found.value, found.details) == (FILE_LINES + 1, (f"b.py: {FILE_LINES + 1}",))


def test_docstrings_are_no_lines_of_a_file_and_all_else_is(tmp_path: Path) -> None:
    code = '"""The module."""\nclass A:\n    """Two\n    lines."""\n    text = """not\n    said"""\n'
    _write(tmp_path, {"a.py": code + 'def f():\n    """One."""\n    # why\n    return 1\n'})
    assert longest_file(tmp_path, [Path("a.py")]).value == 7


def test_seconds_are_those_that_were_written_down(tmp_path: Path) -> None:
    assert seconds("test", 540, tmp_path).value is None
    (tmp_path / "test.json").write_text(json.dumps({"seconds": 541, "processors": 2, "commit": "abc"}))
    found = seconds("test", 540, tmp_path)
    assert not found.holds
    assert found.details == ("on 2 processors, at commit abc",)


def test_a_line_says_whether_it_holds() -> None:
    assert line(Figure("n", 3, 3)).split() == ["n", "3", "of", "at", "most", "3"]
    assert line(Figure("n", 4, 3, ("why",))).endswith("4  of at most 3  MISSED\n    why")
    assert line(Figure("n", None, 3)).endswith("?  of at most 3  NOT KNOWN")


def test_every_figure_is_measured_but_the_seconds() -> None:
    measured = list(figures(ROOT))
    assert [found.name for found in measured if found.value is None and "seconds" not in found.name] == []
    assert len({found.name for found in measured}) == len(measured) == 11


def test_make_writes_down_what_is_read() -> None:
    recipe = (ROOT / "Makefile").read_text()
    assert f">{MEASURED}/$(1).json" in recipe
    assert all(f"{verb}: $(READY)" in recipe and f"timed_tests,{verb}," in recipe for verb in TEST_SECONDS)
    assert all(f'"{key}"' in recipe.replace("\\", "") for key in ("seconds", "processors", "commit"))
