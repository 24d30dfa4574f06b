"""Kubernetes manifests as kustomize builds them, and what is asked of them: pods, containers, settings, by a path."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("one-gpu", "fleet")
# The program that the environment brings, as a wheel; its kustomize is the one of `kubectl apply -k`.
KUBECTL = Path(sys.executable).with_name("kubectl")

Manifest = dict[str, Any]

# What Ray's operator adds to the labels of each pod.
_RAY_LABELS = {"ray.io/is-ray-node": "yes"}


def built_by(kubectl: str | Path, overlay: str) -> str:
    """Returns what `kubectl kustomize` makes of an overlay."""
    command = [kubectl, "kustomize", KUBERNETES / "overlays" / overlay]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def built(overlay: str) -> str:
    return built_by(KUBECTL, overlay)


def manifests(overlay: str) -> list[Manifest]:
    """Returns the objects of an overlay; each call makes new ones, which a test may change."""
    return [found for found in yaml.load_all(built(overlay), yaml.CSafeLoader) if found]


def other_kubectl() -> str | None:
    """Returns another kubectl of this machine, if there is one."""
    found = shutil.which("kubectl", path="/usr/local/bin:/usr/bin:/bin")
    return found if found and Path(found) != KUBECTL else None


@dataclass(frozen=True)
class Pod:
    """One pod that an object makes: its labels, its specification, and whether Ray's operator completes it."""

    path: str
    labels: Mapping[str, str]
    spec: Manifest
    ray: str = ""
    """`head` or `worker`."""
    start: Mapping[str, str] = field(default_factory=dict)
    """The options of `ray start`."""

    def containers(self) -> Iterator[tuple[str, Manifest]]:
        """Yields each container with its path."""
        for kind in ("initContainers", "containers"):
            for container in self.spec.get(kind, []):
                yield f"{self.path}/{container['name']}", container

    def ports(self) -> dict[str, int]:
        return {
            port["name"]: port["containerPort"]
            for _, container in self.containers()
            for port in container.get("ports", [])
        }


def named(objects: Iterable[Manifest], kind: str, name: str = "") -> Manifest:
    """Returns the one object of a kind, or of a kind and a name."""
    found = [one for one in of_kind(objects, kind) if name in ("", one["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} {kind} {name}"
    return found[0]


def of_kind(objects: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [one for one in objects if one["kind"] == kind]


def path_of(one: Manifest) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


def pods(objects: Iterable[Manifest]) -> list[Pod]:
    """Returns the pods of all objects, those that Ray's operator makes among them."""
    return [pod for one in objects for pod in _pods_of(one)]


def _pods_of(one: Manifest) -> Iterator[Pod]:
    spec, path = one.get("spec", {}), path_of(one)
    if one["kind"] in ("Deployment", "Job"):
        yield _pod(path, spec["template"])
    if one["kind"] == "CronJob":
        yield _pod(path, spec["jobTemplate"]["spec"]["template"])
    if "submitterPodTemplate" in spec:
        yield _pod(f"{path}/submitter", spec["submitterPodTemplate"])
    for cluster in ray_clusters(one):
        yield from _pods_of_ray(path, cluster)


def ray_clusters(one: Manifest) -> list[Manifest]:
    """Returns the specification of the Ray cluster that an object makes, if it makes one."""
    spec = one.get("spec", {})
    return [spec[name] for name in ("rayClusterConfig", "rayClusterSpec") if name in spec]


def _pod(path: str, template: Manifest, **more: Any) -> Pod:
    labels = template.get("metadata", {}).get("labels", {})
    return Pod(path, {**labels, **more.pop("added", {})}, template["spec"], **more)


def _pods_of_ray(path: str, cluster: Manifest) -> Iterator[Pod]:
    head = cluster["headGroupSpec"]
    added = {**_RAY_LABELS, "ray.io/node-type": "head"}
    yield _pod(f"{path}/head", head["template"], added=added, ray="head", start=head["rayStartParams"])
    for group in cluster.get("workerGroupSpecs", []):
        added = {**_RAY_LABELS, "ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
        where = f"{path}/{group['groupName']}"
        yield _pod(where, group["template"], added=added, ray="worker", start=group["rayStartParams"])


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels, as policies and monitors have it, selects these labels; an empty one selects all."""
    assert set(selector) <= {"matchLabels"}, f"this test knows no {set(selector)}"
    return selector.get("matchLabels", {}).items() <= labels.items()


def environment(objects: Iterable[Manifest], container: Manifest) -> dict[str, str]:
    """Returns the variables of a container: those of its maps, and its own; of a Secret's, the name of the Secret."""
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps.get(source.get("configMapRef", {}).get("name"), {})
    for one in container.get("env", []):
        reference = one.get("valueFrom", {}).get("configMapKeyRef")
        kept = maps.get(reference["name"], {}).get(reference["key"], "") if reference else "a Secret's"
        found[one["name"]] = one.get("value", kept)
    return found


def is_pinned(image: str) -> bool:
    """Whether an image has a digest, or the tag of a version: not none, and not one that moves."""
    return bool(re.fullmatch(r"[\w./-]+(:\d+)?/[\w./-]+:\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", image))
