"""The contract: generated code is what proto/ says, every reason is in the table, tools come with exact versions."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actstore_api.reasons import REASONS

GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def test_generated_code_is_that_of_the_protos(root: Path, tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(root)) for path in root.glob("proto/actstore_api/v1/*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=proto", *outputs, *protos], cwd=root, check=True
    )
    fresh = _generated(tmp_path)
    # A proto without a service has an empty grpc file, which is committed too.
    assert len(fresh) == len(GENERATED) * len(protos)
    assert fresh == _generated(root / "proto")


def _generated(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*_pb2*") if path.name.endswith(GENERATED)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_every_reason_is_in_the_table(sources: list[Path], root: Path) -> None:
    packaged = [path for path in sources if path.parts[1].startswith("actstore")]
    used = [(str(path), reason) for path in packaged for reason in _reasons(ast.parse((root / path).read_text()))]
    assert used
    assert [(path, reason) for path, reason in used if reason not in REASONS] == []


def _reasons(tree: ast.AST) -> Iterator[str]:
    """String constants given as `reason=`, assigned to `default_reason`, or first in `Failure(...)`."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="reason", value=ast.Constant(value=str(reason))):
                yield reason
            case ast.Assign(targets=[ast.Name(id="default_reason")], value=ast.Constant(value=str(reason))):
                yield reason
            case ast.Call(func=ast.Name(id="Failure"), args=[ast.Constant(value=str(reason)), *_]):
                yield reason


@pytest.mark.parametrize("code", ['f(reason="X")', 'class A:\n    default_reason = "X"', 'Failure("X", "message")'])
def test_a_reason_is_found_however_it_is_given(code: str) -> None:
    assert list(_reasons(ast.parse(code))) == ["X"]


def test_constraints_are_exact_and_of_public_versions(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if line.count("==") != 1 or set("+@/ ") & set(line)] == []


def test_buf_is_pinned(root: Path) -> None:
    package = json.loads((root / "package.json").read_text())
    assert package["devDependencies"]["@bufbuild/buf"].replace(".", "").isdigit()
