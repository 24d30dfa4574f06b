"""Links and mentions lead somewhere: between pages, to headings, and from code and pages to files of docs/."""

import os
import re
from pathlib import Path

from docs.hooks.generated_pages import generated

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
CODE = [
    path
    for folder in ("proto", "storage", "client", "services", "workers", "tests", "benchmarks", "examples", "deploy")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".proto", ".md") and "_pb2" not in path.name
]
# Pages of the reference that hooks write when the site is built.
GENERATED = {f"docs/{uri}" for uri, _ in generated()}


def test_mentions_of_pages_name_pages_that_are_there() -> None:
    gone = [
        f"{path.relative_to(ROOT)}: {mention}"
        for path in {*CODE, *PAGES}
        for mention in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text())
        if not (ROOT / mention).exists() and mention not in GENERATED
    ]
    assert gone == []


def test_links_between_pages_lead_somewhere() -> None:
    links = [
        (page, target) for page in PAGES for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    ]
    assert links
    gone = [(str(page), target) for page, target in links if not _is_there(page.parent / target)]
    assert gone == []


def _is_there(path: Path) -> bool:
    return path.exists() or os.path.relpath(path, ROOT) in GENERATED


def test_links_to_headings_name_headings_that_are_there() -> None:
    gone = [
        f"{page.relative_to(ROOT)}: {target}#{anchor}"
        for page in PAGES
        for target, anchor in re.findall(r"\]\(([^)#:\s]*\.md)?#([^)]+)\)", page.read_text())
        if (path := page.parent / target if target else page).exists() and anchor not in _anchors(path)
    ]
    assert gone == []


def _anchors(page: Path) -> set[str]:
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    explicit = re.findall(r"\{ ?#([\w-]+) ?\}|id=\"([\w-]+)\"", text)
    return {_slug(heading) for heading in headings} | {name for pair in explicit for name in pair if name}


def _slug(heading: str) -> str:
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_pages_for_readers_link_to_the_glossary() -> None:
    folders = ("tutorials", "how-to", "explanation")
    pages = [page for folder in folders for page in (ROOT / "docs" / folder).glob("*.md")]
    assert [page.name for page in pages if "glossary.md" not in page.read_text()] == ["benchmarks.md"]
