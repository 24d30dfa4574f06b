"""Every code block of the documentation and the README runs, over one local stack with the bundled model."""

import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import actstore
from tests.docs.code_blocks import PARSED_KINDS, PLAIN_KINDS, RUN_KINDS, blocks_of, commands_of, run_block

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "decisions" not in path.parts)]
# tests/deploy runs those that start a deployment of their own, or speak to a cluster.
ELSEWHERE = [ROOT / "docs" / "operate.md", ROOT / "docs" / "kubernetes.md"]
WITH_CODE = [
    page for page in PAGES if page not in ELSEWHERE and any(block.kind in RUN_KINDS for block in blocks_of(page))
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[actstore.LocalStack]:
    """The stack of the quickstart, in the folder in which the blocks run; it has the repository's examples."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("models", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "text").mkdir()
    (folder / "text" / "pages.jsonl").write_text('{"body": "import os", "lang": "en", "url": "a"}\n')
    datasets = [sysconfig.get_path("stdlib"), "text"]
    with chdir(folder), actstore.LocalStack(port=0, model_folders=["models"], dataset_folders=datasets) as started:
        yield started


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MPLBACKEND": "Agg",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(autouse=True)
def _quiet_plots() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, stack: actstore.LocalStack, environment: Mapping[str, str]) -> None:
    namespace: dict[str, object] = {"__name__": "__main__", "actstore": actstore, "lab": stack.lab}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", actstore.SaeWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        for block in blocks_of(page):
            if block.kind in RUN_KINDS and not block.reason:
                run_block(page, block, namespace, environment)
                plt.close("all")


def test_blocks_that_are_not_run_say_why() -> None:
    left_out = [
        f"{page.relative_to(ROOT)}:{block.line}: {block.reason}"
        for page in PAGES
        for block in blocks_of(page)
        if block.kind in RUN_KINDS and block.reason
    ]
    print("\n".join(left_out))
    assert all(reason.rpartition(": ")[2] in REASONS for reason in left_out), left_out


# Why a block may be left out. Nothing else may.
REASONS = {
    "installs",
    "starts a stack",
    "needs a GPU",
    "needs the hub",
    "needs weights that are not bundled",
    "needs another machine",
    "needs the settings of a lab",
    "needs workers with the bundled model",
    "needs a cluster",
    "needs a container engine",
    "trains for minutes",
    "runs the whole experiment for minutes",
}


def test_every_block_says_what_it_is() -> None:
    unknown = [
        f"{page.relative_to(ROOT)}:{block.line}: {block.kind}"
        for page in PAGES
        for block in blocks_of(page)
        if block.kind not in (*RUN_KINDS, *PLAIN_KINDS)
    ]
    assert unknown == []


def test_configuration_can_be_parsed() -> None:
    found = [(block.kind, block.body) for page in PAGES for block in blocks_of(page) if block.kind in PARSED_KINDS]
    assert len(found) > 1
    for kind, body in found:
        assert PARSED_KINDS[kind](body)


def test_commands_are_found_with_the_lines_that_belong_to_them() -> None:
    body = "$ one \\\n    more\noutput\n$ two <<'END'\ninside\nEND\noutput\n"
    assert list(commands_of(body)) == ["one \\\n    more", "two <<'END'\ninside\nEND"]
