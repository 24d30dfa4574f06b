"""What `import actstore` shows and what it costs."""

import json
import subprocess
import sys
import types
from pathlib import Path

import actstore

PACKAGE = Path(actstore.__file__).parent
HEAVY = ("torch", "ray", "transformers", "pandas", "matplotlib", "polars", "minio", "grpc")


def test_all_is_sorted_and_is_what_is_visible() -> None:
    visible = {
        name
        for name, value in vars(actstore).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert actstore.__all__ == sorted(actstore.__all__)
    assert visible == set(actstore.__all__)


def test_every_module_is_private() -> None:
    assert [path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")] == ["py.typed"]


def test_importing_is_light() -> None:
    code = f"import actstore, json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
