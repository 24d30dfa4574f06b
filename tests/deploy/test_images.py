"""The two images without an engine that builds them: their Dockerfiles, what is installed into them, and the script."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT
from tests.packaging.test_dependencies import declared

IMAGES = ROOT / "deploy" / "images"
NAMES = ("service", "workers")
HADOLINT = Path(sys.executable).with_name("hadolint")
EXTRAS = {"service": ["service", "trace"], "workers": ["worker", "trace"]}
DIGEST = "sha256:" + "0" * 64
BASE = f"docker.io/library/python:3.11-slim-bookworm@{DIGEST}"
# What stands in for an engine writes down how it was called.
ENGINE = '#!/bin/sh\necho "$@" >> "$CALLS"\n'


def _dockerfile(name: str) -> str:
    return (IMAGES / f"{name}.Dockerfile").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_dockerfiles_are_clean(name: str) -> None:
    done = subprocess.run([HADOLINT, IMAGES / f"{name}.Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(_dockerfile("service").replace("--no-cache-dir", "").replace("WORKDIR /src", "RUN cd /src"))
    assert subprocess.run([HADOLINT, wrong], capture_output=True).returncode != 0


def wrong_in(text: str) -> list[str]:
    """What is wrong with a Dockerfile beyond hadolint's rules."""
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    found = [f"the base {base} is not the argument" for base in bases if not re.fullmatch(r"\$\{\w+\}|\w+", base)]
    found += ["the base has a default"] if re.search(r"^ARG PYTHON_IMAGE=", text, re.MULTILINE) else []
    users = re.findall(r"^USER (.*)$", text.partition("# What is in the image")[0], re.MULTILINE)
    found += [f"the users are {users}"] if users != ["10001:10001"] else []
    found += ["a dependency is not locked"] if "--constraint constraints.txt" not in text else []
    return found + (["a secret is copied"] if re.search(r"(?i)token|secret|password", text) else [])


@pytest.mark.parametrize("name", NAMES)
def test_images_are_pinned_locked_and_not_of_root(name: str) -> None:
    assert wrong_in(_dockerfile(name)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("USER 10001:10001\nENTRYPOINT", "ENTRYPOINT"),
        ("USER 10001:10001\nENTRYPOINT", "USER actstore\nENTRYPOINT"),
        ("FROM ${PYTHON_IMAGE} AS service", "FROM python:3.11 AS service"),
        ("ARG PYTHON_IMAGE\n", "ARG PYTHON_IMAGE=python:3.11\n"),
        ("--constraint constraints.txt", ""),
        ("ENV PYTHONUNBUFFERED=1", "ENV ACTSTORE_TOKEN=1"),
    ],
)
def test_a_planted_mistake_is_found(old: str, new: str) -> None:
    text = _dockerfile("service")
    assert old in text
    assert wrong_in(text.replace(old, new))


def requirements(*arguments: str) -> list[str]:
    """What the script of the images prints."""
    command = [sys.executable, IMAGES / "requirements.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_requirements_are_those_of_the_extra(name: str) -> None:
    assert f"requirements.py {' '.join(EXTRAS[name])} " in _dockerfile(name)
    printed = requirements(*EXTRAS[name])
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", one)[0]).lower() for one in printed}
    assert names == declared(EXTRAS[name])
    assert len(printed) == len(names)


def test_the_service_has_neither_torch_nor_ray() -> None:
    printed = " ".join(requirements("service"))
    assert not re.search(r"\b(torch|ray|transformers)\b", printed)
    assert not [one for one in requirements("worker", "--without", "torch") if one.startswith("torch")]


def test_the_context_has_the_code_of_the_wheel() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    lines = [line.split() for line in re.findall(r"^COPY ((?!--from).*)$", _dockerfile("workers"), re.MULTILINE)]
    copied = {word for line in lines for word in line[:-1] if not word.startswith("--") and word != "."}
    for path in {*packages["packages"], *copied, "README.md", "LICENSE"}:
        assert f"!{path}" in ignored, path
        assert (ROOT / path).exists(), path
    assert ignored[1] == "*"


def test_the_command_of_ray_is_the_one_that_nodes_start_with() -> None:
    assert re.search(r"^COPY --chmod=0755 deploy/images/ray /usr/local/bin/ray$", _dockerfile("workers"), re.MULTILINE)
    (module,) = re.findall(r"^exec python -P -m (\S+) \"\$@\"$", (IMAGES / "ray").read_text(), re.MULTILINE)
    assert find_spec(module)


def _build(folder: Path, *arguments: str, base: str = BASE) -> subprocess.CompletedProcess[str]:
    engine = folder / "docker"
    engine.write_text(ENGINE)
    engine.chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    command = [IMAGES / "build", *arguments]
    return subprocess.run(
        command, env={**environment, "PYTHON_IMAGE": base}, capture_output=True, text=True, cwd=folder
    )


def test_the_script_builds_both_images_and_their_lists(tmp_path: Path) -> None:
    done = _build(tmp_path, "registry.example.org/lab", "1.2.3")
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4
    assert all(f"PYTHON_IMAGE={BASE}" in call for call in calls)
    for name, (image, listing) in zip(NAMES, [calls[:2], calls[2:]], strict=True):
        assert f"--target {name} --tag registry.example.org/lab/actstore-{name}:1.2.3" in image
        assert f"--target sbom --output type=local,dest=dist/sbom/{name}" in listing
        assert f"FROM ${{PYTHON_IMAGE}} AS {name}" in _dockerfile(name)
        assert "FROM scratch AS sbom" in _dockerfile(name)


@pytest.mark.parametrize(
    ("arguments", "base", "said"),
    [
        ((), BASE, "name the registry"),
        (("registry.example.org", "latest"), BASE, "the version is 'latest'"),
        (("registry.example.org",), "python:3.11-slim-bookworm", "NAME:TAG@sha256:DIGEST"),
        (("registry.example.org",), f"python@{DIGEST}", "NAME:TAG@sha256:DIGEST"),
    ],
)
def test_the_script_refuses_what_is_not_pinned(
    tmp_path: Path, arguments: tuple[str, ...], base: str, said: str
) -> None:
    done = _build(tmp_path, *arguments, base=base)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "calls").exists()
