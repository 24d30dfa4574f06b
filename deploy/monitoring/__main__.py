"""`python -m deploy.monitoring` writes all files. With `--check` it writes nothing, and says which ones differ."""

import sys

from deploy.monitoring.files import ROOT, files


def main(arguments: list[str]) -> int:
    """Returns 1 if `--check` found a difference."""
    changed = [path for path, text in files().items() if _read(path) != text]
    for path in changed:
        print(path)
        if "--check" not in arguments:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(files()[path])
    return int("--check" in arguments and bool(changed))


def _read(path: str) -> str | None:
    return (ROOT / path).read_text() if (ROOT / path).exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
