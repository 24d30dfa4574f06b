"""docs/kubernetes.md: its commands run where they need no cluster, and its tables are those of the manifests."""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.deploy.checks_of_names import SECRETS
from tests.deploy.checks_of_pods import bytes_of
from tests.deploy.checks_of_schemas import VERSIONS, wrong_fields
from tests.deploy.manifests import KUBERNETES, OVERLAYS, ROOT, Manifest, manifests, of_kind, pods
from tests.deploy.test_manifests import CHECKS
from tests.docs.code_blocks import blocks_of, run_block

PAGE = ROOT / "docs" / "kubernetes.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which every command of the page has run that needs no cluster."""
    made = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "deploy", made / "deploy")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment: Mapping[str, str] = {**os.environ, "PATH": path}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for block in blocks_of(PAGE):
            if block.kind == "console" and not block.reason:
                run_block(PAGE, block, {}, environment)
    return made


def _loaded(file: Path) -> list[Manifest]:
    return [found for found in yaml.load_all(file.read_text(), yaml.CSafeLoader) if found]


def test_the_overlay_of_the_page_passes_every_check(folder: Path) -> None:
    built = _loaded(folder / "lab.yaml")
    assert [wrong for check in CHECKS for wrong in check(built)] == []
    assert wrong_fields(built) == []


def test_the_secrets_of_the_page_are_those_that_pods_mount(folder: Path) -> None:
    made = {one["metadata"]["name"]: tuple(one["data"]) for one in _loaded(folder / "secrets" / "all.yaml")}
    assert wrong_fields(_loaded(folder / "secrets" / "all.yaml")) == []
    # The certificate is the issuer's, and authorities of clients are the lab's.
    assert made == {name: files for name, files in SECRETS.items() if name not in _OTHERS}
    rows = re.findall(r"^\| `(actstore-[\w-]+)` \| (`[^|]+) \|", PAGE.read_text(), re.MULTILINE)
    assert {name: tuple(re.findall(r"`([\w.]+)`", files)) for name, files in rows} == SECRETS


_OTHERS = ("actstore-tls", "actstore-client-authorities")


def test_sizes_of_the_page_are_those_of_the_pods() -> None:
    """By the memory of each kind of pod, in GiB."""
    rows = re.findall(r"^\| ([\w ]+) \| [^|]+ \| (\d+) GiB", PAGE.read_text(), re.MULTILINE)
    told = {name: int(size) << 30 for name, size in rows}
    kinds = {"service": "Deployment/", "head of Ray": "/head", "CPU worker": "/cpu", "GPU worker": "/gpu"}
    for overlay in OVERLAYS:
        for pod in pods(manifests(overlay)):
            for name, part in kinds.items():
                if part in pod.path:
                    assert bytes_of(pod.spec["containers"][0]["resources"]["limits"]["memory"]) == told[name], pod.path


def test_the_page_names_all_components_and_overlays_and_the_versions_that_are_checked() -> None:
    text = PAGE.read_text()
    for kind in ("components", "overlays"):
        assert [one.name for one in (KUBERNETES / kind).iterdir() if f"`{one.name}`" not in text] == []
    assert f"Kubernetes {VERSIONS[0]} or newer" in text
    assert all(version in text for version in VERSIONS)


def test_the_fleet_asks_for_as_many_replicas_and_gpus_as_the_page_says() -> None:
    (scaler,) = of_kind(manifests("fleet"), "HorizontalPodAutoscaler")
    (service,) = of_kind(manifests("fleet"), "RayService")
    gpus = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    said = f"{scaler['spec']['minReplicas']} to {scaler['spec']['maxReplicas']} replicas"
    assert said in PAGE.read_text()
    assert f"{gpus['minReplicas']} to {gpus['maxReplicas']} GPUs" in PAGE.read_text()
