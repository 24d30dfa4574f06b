"""Checks that manifests name what the code has: settings, files, entry points, ports, metrics."""

import argparse
import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from actstore._cli.main import command_parser
from actstore_api.metrics import METRICS
from docs.hooks.settings import variables
from tests.deploy.checks_of_names import SECRETS
from tests.deploy.manifests import Manifest, Pod, environment, named, of_kind, path_of, pods

# Variables of others that the images need.
FOREIGN = {"HOME", "HF_HUB_OFFLINE", "RAY_USAGE_STATS_ENABLED", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"}
# Where the image's own folders are, which no volume has.
_LISTENERS = {"ACTSTORE_LISTEN": "grpc", "ACTSTORE_METRICS_LISTEN": "metrics"}


@cache
def _read_by() -> dict[str, set[str]]:
    return {found.name: set(found.readers) for found in variables()}


def _process_of(container: Manifest, pod: Pod) -> str:
    """Which process's settings a container reads."""
    if pod.ray:
        return "workers"
    return {"actstore_service": "service", "actstore_worker": "workers"}.get(_module(container), "client")


def _module(container: Manifest) -> str:
    arguments = container.get("args", [])
    return arguments[1] if arguments[:1] == ["-m"] else ""


def settings(objects: list[Manifest]) -> Iterator[str]:
    """Every variable is a setting that the container's process reads, or one of the libraries below it."""
    for pod in pods(objects):
        for path, container in pod.containers():
            reader = _process_of(container, pod)
            shared = _names_in(objects, container, "actstore-store")
            for name in environment(objects, container):
                known = _read_by().get(name, set())
                if name not in FOREIGN and reader not in known and not (name in shared and known):
                    yield f"{path}: {name} is not a setting of the {reader}"


def _names_in(objects: list[Manifest], container: Manifest, prefix: str) -> set[str]:
    """What a container gets from the map that all share; nobody has to read all of it."""
    named_maps = {source["configMapRef"]["name"] for source in container.get("envFrom", [])}
    return {
        name
        for one in of_kind(objects, "ConfigMap")
        if one["metadata"]["name"] in named_maps and one["metadata"]["name"].startswith(prefix)
        for name in one["data"]
    }


def files(objects: list[Manifest]) -> Iterator[str]:
    """Every path in a setting lies in a folder that the container mounts; in one of a Secret, it is a file of it."""
    for pod in pods(objects):
        secrets = {one["name"]: one["secret"]["secretName"] for one in pod.spec.get("volumes", []) if "secret" in one}
        for path, container in pod.containers():
            mounted = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            for name, value in environment(objects, container).items():
                if not value.startswith("/"):
                    continue
                folder = next((each for each in mounted if Path(value).is_relative_to(each)), None)
                if folder is None:
                    yield f"{path}: {name} is {value}, which is in no mounted folder"
                elif (secret := secrets.get(mounted[folder])) and Path(value).name not in SECRETS.get(secret, ()):
                    yield f"{path}: {name} is {value}, and the Secret {secret} has no such file"


def entry_points(objects: list[Manifest]) -> Iterator[str]:
    """Every container starts a module that exists, with arguments that it knows; Serve finds what it imports."""
    for pod in pods(objects):
        for path, container in pod.containers():
            if not pod.ray and not pod.path.endswith("/submitter"):
                yield from (f"{path}: {wrong}" for wrong in _wrong_start(container.get("args", [])))
    for one in of_kind(objects, "RayJob"):
        words = one["spec"]["entrypoint"].split()
        if words[:2] != ["python", "-P"]:
            yield f"{path_of(one)} starts {words}"
        yield from (f"{path_of(one)}: {wrong}" for wrong in _wrong_start(words[2:]))
    for one in of_kind(objects, "RayService"):
        yield from (f"{path_of(one)}: {wrong}" for wrong in _wrong_imports(serve_config(one)))


def _wrong_start(arguments: list[str]) -> Iterator[str]:
    if arguments[:1] != ["-m"] or not _is_found(f"{arguments[1]}.__main__"):
        yield f"{arguments} starts no module"
    elif arguments[1] == "actstore":
        try:
            command_parser().parse_args(arguments[2:])
        except (SystemExit, argparse.ArgumentError):
            yield f"the command does not know {arguments[2:]}"
    elif unknown := [word for word in arguments[2:] if word not in _source(f"{arguments[1]}.__main__")]:
        yield f"{arguments[1]} does not know {unknown}"


def serve_config(service: Manifest) -> dict[str, Any]:
    """Returns what Serve gets from a RayService."""
    found: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return found


def _wrong_imports(config: dict[str, Any]) -> Iterator[str]:
    named_here = [name.rpartition(".")[::2] for name in config["grpc_options"]["grpc_servicer_functions"]]
    named_here += [one["import_path"].partition(":")[::2] for one in config["applications"]]
    for module, name in named_here:
        if not _is_found(module) or name not in _top_level(module):
            yield f"there is no {name} in {module}"


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec, module
    assert spec.origin, module
    return Path(spec.origin).read_text()


def _top_level(module: str) -> set[str]:
    """The functions and classes of a module, which is not imported: that would load Ray."""
    body = ast.parse(_source(module)).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def addresses(objects: list[Manifest]) -> Iterator[str]:
    """Ports in settings are those of the containers and of Serve, and the gateway's name is that of its Service."""
    (service,) = [pod for pod in pods(objects) if pod.path.startswith("Deployment/")]
    found = environment(objects, service.spec["containers"][0])
    for name, port in _LISTENERS.items():
        if found.get(name) != f"0.0.0.0:{service.ports()[port]}":
            yield f"{name} is {found.get(name)}, and the port {port} is {service.ports()[port]}"
    workers = named(objects, "RayService")
    offered = workers["spec"]["serveService"]
    gateway = next(port["port"] for port in offered["spec"]["ports"] if port["name"] == "serve-grpc")
    if found["ACTSTORE_GATEWAY"] != f"{offered['metadata']['name']}:{gateway}":
        yield f"ACTSTORE_GATEWAY is {found['ACTSTORE_GATEWAY']}"
    yield from _ports_of_serve(workers, [pod for pod in pods(objects) if pod.path.startswith("RayService/")])
    yield from _ports_of_canary(objects)


def _ports_of_serve(workers: Manifest, nodes: Iterable[Pod]) -> Iterator[str]:
    config = serve_config(workers)
    wanted = {"serve": config["http_options"]["port"], "serve-grpc": config["grpc_options"]["port"]}
    if config["http_options"].get("host") != "0.0.0.0":  # noqa: S104 - the operator of Ray asks from another pod
        yield "Ray's operator cannot ask Serve's proxy"
    if config["grpc_options"].get("enable_reflection") is not False:
        yield "Serve's proxy offers reflection"
    for pod in nodes:
        if {name: pod.ports().get(name) for name in wanted} != wanted:
            yield f"{pod.path} has not Serve's ports {wanted}"
    offered = {port["name"]: port["port"] for port in workers["spec"]["serveService"]["spec"]["ports"]}
    if offered != wanted:
        yield f"Serve's Service has the ports {offered}"


def _ports_of_canary(objects: list[Manifest]) -> Iterator[str]:
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in of_kind(objects, "Service")}
    for pod in pods(objects):
        for path, container in pod.containers():
            host, _, port = environment(objects, container).get("ACTSTORE_ADDRESS", "").partition(":")
            if port.isdigit() and int(port) not in {each["port"] for each in services.get(host, [])}:
                yield f"{path}: ACTSTORE_ADDRESS {host}:{port} is no Service"


def metrics(objects: list[Manifest]) -> Iterator[str]:
    """The autoscaler goes by metrics that the service exports."""
    for one in of_kind(objects, "HorizontalPodAutoscaler"):
        for each in one["spec"]["metrics"]:
            name = each.get("pods", {}).get("metric", {}).get("name")
            if name and name not in METRICS:
                yield f"{path_of(one)} scales by {name}, which is no metric"


CHECKS = (settings, files, entry_points, addresses, metrics)
