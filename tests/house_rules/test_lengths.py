"""Short functions, short files, folders that one look takes in; generated code aside."""

from collections.abc import Iterator
from pathlib import Path

from tests.house_rules.figures import FOLDER_FILES
from tests.house_rules.python_files import file_lengths, files_by_folder, functions

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600


def _long_functions(path: Path, root: Path) -> Iterator[str]:
    for node, lines in functions(root / path):
        if lines > FUNCTION_LINES_MAX:
            yield f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_functions(sources: list[Path], root: Path) -> None:
    assert [found for path in sources for found in _long_functions(path, root)] == []


def test_files(sources: list[Path], root: Path) -> None:
    assert {path: lines for path, lines in file_lengths(root, sources).items() if lines > FILE_LINES_MAX} == {}


def test_folders(sources: list[Path]) -> None:
    counts = files_by_folder(sources)
    assert {str(folder): count for folder, count in counts.items() if count > FOLDER_FILES} == {}


def test_a_long_function_is_found(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("def long():\n" + "    pass\n" * FUNCTION_LINES_MAX)
    assert len(list(_long_functions(Path("long.py"), tmp_path))) == 1
