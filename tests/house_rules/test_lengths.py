"""Short functions, short files; generated code aside."""

import ast
from collections.abc import Iterator
from pathlib import Path

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600


def _long_functions(path: Path, root: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_functions(sources: list[Path], root: Path) -> None:
    assert [found for path in sources for found in _long_functions(path, root)] == []


def test_files(sources: list[Path], root: Path) -> None:
    lengths = {path: len((root / path).read_text().splitlines()) for path in sources}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_a_long_function_is_found(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("def long():\n" + "    pass\n" * FUNCTION_LINES_MAX)
    assert len(list(_long_functions(Path("long.py"), tmp_path))) == 1
