"""What readers are told: pages agree with the code, and decisions are listed. tests/docs has links and code."""

import re
import tomllib
from pathlib import Path
from typing import Any


def test_the_readme_shows_every_package(packages: list[Path], root: Path) -> None:
    readme = (root / "README.md").read_text()
    assert [str(package) for package in packages if package.name not in readme] == []


def test_the_architecture_page_draws_the_arrows_that_are_checked(project: dict[str, Any], root: Path) -> None:
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = [found["layers"] for found in contracts if found["name"] == "Arrows run one way"]
    assert " above ".join(f"`{layer}`" for layer in layers) in " ".join((root / "ARCHITECTURE.md").read_text().split())


def test_decisions_are_numbered_without_gaps_and_listed_by_their_titles(root: Path) -> None:
    folder = root / "docs" / "decisions"
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    titles = {page.name: page.read_text().splitlines()[0].removeprefix("# ") for page in pages}
    listed = re.findall(r"^- \[(.*)\]\((.*)\)$", (folder / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted((title, name) for name, title in titles.items())


def test_files_that_the_architecture_page_names_are_there(packages: list[Path], root: Path) -> None:
    page = (root / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py|actstore\w*/[\w/]+/)`", page))
    assert named
    there = {f"/{path.relative_to(package.parent)}" for package in packages for path in _below(root, package)}
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name.rstrip('/')}") for path in there)] == []


def _below(root: Path, package: Path) -> list[Path]:
    return [path.relative_to(root) for path in (root / package).rglob("*")]


def test_what_is_said_of_installing_is_true(root: Path) -> None:
    """Nothing is released, so that `pip install actstore` finds nothing; the extras that are named are there."""
    texts = [
        path.read_text()
        for folder in ("docs", "client", "workers", "services", "storage")
        for path in (root / folder).rglob("*")
        if path.suffix in (".md", ".py")
    ]
    texts += [path.read_text() for path in root.glob("*.md")]
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert not [text for text in texts if re.search(r"pip install ['\"]?actstore", text)]
    named = {extra for text in texts for extra in re.findall(r"pip install '\.(?:/[^'\[]*)?\[(\w+)\]'", text)}
    assert {"all", "train"} <= named <= extras
