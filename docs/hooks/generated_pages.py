"""Adds the generated pages of the reference to the site, each time mkdocs builds it; no such page is a file."""

from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.hooks import columns, command, contract, errors, limits, metrics, python_pages, settings


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a file for each generated page; mkdocs calls this once a build."""
    for uri, markdown in generated():
        files.append(File.generated(config, uri, content=markdown))
    return files


def generated() -> Iterator[tuple[str, str]]:
    """Yields each generated page: its place below docs/, and its Markdown."""
    yield "reference/columns.md", columns.page()
    yield "reference/command.md", command.page()
    yield "reference/errors.md", errors.page()
    yield "reference/limits.md", limits.page()
    yield "reference/settings.md", settings.page()
    yield "reference/metrics.md", metrics.page()
    for noun, markdown in python_pages.pages().items():
        yield f"reference/python/{noun}.md", markdown
    for noun, markdown in contract.pages().items():
        yield f"reference/contract/{noun}.md", markdown
