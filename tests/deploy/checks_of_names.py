"""Checks of names across objects: what selects what, which ports lead where, and what is referred to."""

from collections.abc import Iterable, Iterator
from typing import Any

from tests.deploy.manifests import Manifest, Pod, of_kind, path_of, pods, ray_clusters, selects

# The Secrets that an operator makes, with the files that they have. docs/kubernetes.md has the same table.
SECRETS = {
    "actstore-store-reader": ("credentials",),
    "actstore-store-writer": ("credentials",),
    "actstore-access": ("access.toml",),
    "actstore-gateway": ("tokens",),
    "actstore-canary": ("token",),
    "actstore-ray": ("auth_token",),
    "actstore-tls": ("tls.crt", "tls.key", "ca.crt"),
}
# What decides that a value is a secret, unless it is a path.
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "ACCESS_KEY")


def selectors(objects: list[Manifest]) -> Iterator[str]:
    """Everything that selects pods selects some, and what owns pods selects its own."""
    found = pods(objects)
    for path, selector in _selectors(objects):
        if not any(selects(selector, pod.labels) for pod in found):
            yield f"{path} selects no pod: {selector}"
    for one in of_kind(objects, "Deployment"):
        selector, template = one["spec"]["selector"], one["spec"]["template"]
        if not selects(selector, template["metadata"]["labels"]):
            yield f"{path_of(one)} does not select its own pods"
        for spread in template["spec"].get("topologySpreadConstraints", []):
            if not selects(spread["labelSelector"], template["metadata"]["labels"]):
                yield f"{path_of(one)} spreads over other pods"
    for one in of_kind(objects, "ServiceMonitor"):
        services = [found for found in of_kind(objects, "Service") if _is_selected(one, found)]
        ports = {port["name"] for found in services for port in found["spec"]["ports"]}
        for endpoint in one["spec"]["endpoints"]:
            if endpoint["port"] not in ports:
                yield f"{path_of(one)}: no Service that it selects has the port {endpoint['port']}"


def _is_selected(monitor: Manifest, service: Manifest) -> bool:
    return selects(monitor["spec"]["selector"], service["metadata"].get("labels", {}))


def _selectors(objects: Iterable[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for one in objects:
        spec, path = one.get("spec", {}), path_of(one)
        if one["kind"] == "Service":
            yield path, {"matchLabels": spec["selector"]}
        if one["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            yield path, spec["selector"]
        if one["kind"] == "NetworkPolicy":
            yield path, spec["podSelector"]
            for peer in _peers(spec):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    yield f"{path} (peer)", peer["podSelector"]


def _peers(policy: Manifest) -> Iterator[Manifest]:
    for rule in policy.get("ingress", []):
        yield from rule.get("from", [])
    for rule in policy.get("egress", []):
        yield from rule.get("to", [])


def ports(objects: list[Manifest]) -> Iterator[str]:
    """Every named port is one of the containers that it leads to, and names are unique in a pod."""
    found = pods(objects)
    for path, selector, name in _named_ports(objects):
        leads = [pod for pod in found if selects(selector, pod.labels)]
        if not any(name in pod.ports() for pod in leads):
            yield f"{path}: the port {name} is none of {[pod.path for pod in leads]}"
    for pod in found:
        for path, container in pod.containers():
            asked = {
                container[probe]["httpGet"]["port"]
                for probe in ("startupProbe", "readinessProbe", "livenessProbe")
                if probe in container
            }
            yield from (f"{path}: a probe asks the port {name}" for name in asked - set(pod.ports()))


def _named_ports(objects: Iterable[Manifest]) -> Iterator[tuple[str, Manifest, str]]:
    """Yields each port's name with the selector of the pods that must have it."""
    for one in objects:
        spec, path = one.get("spec", {}), path_of(one)
        if one["kind"] == "Service":
            yield from ((path, {"matchLabels": spec["selector"]}, port["targetPort"]) for port in spec["ports"])
        if one["kind"] == "PodMonitor":
            yield from ((path, spec["selector"], each["port"]) for each in spec["podMetricsEndpoints"])
        if one["kind"] == "NetworkPolicy":
            yield from _ports_of_policy(path, spec)


def _ports_of_policy(path: str, policy: Manifest) -> Iterator[tuple[str, Manifest, str]]:
    for rule in policy.get("ingress", []):
        yield from ((path, policy["podSelector"], port["port"]) for port in _named_only(rule))
    for rule in policy.get("egress", []):
        for peer in rule.get("to", []):
            if "podSelector" in peer and "namespaceSelector" not in peer:
                yield from ((path, peer["podSelector"], port["port"]) for port in _named_only(rule))


def _named_only(rule: Manifest) -> list[Manifest]:
    return [port for port in rule.get("ports", []) if isinstance(port["port"], str)]


def references(objects: list[Manifest]) -> Iterator[str]:
    """Maps, accounts and claims that pods name are in the build; Secrets are in the table."""
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for pod in pods(objects):
        for kind, name in _referred(pod):
            if kind == "Secret" and name not in SECRETS:
                yield f"{pod.path}: the Secret {name} is not in the table"
            if kind != "Secret" and (kind, name) not in names:
                yield f"{pod.path}: there is no {kind} {name}"
    for one in objects:
        for cluster in ray_clusters(one):
            if (name := cluster.get("authOptions", {}).get("secretName")) not in SECRETS:
                yield f"{path_of(one)}: the Secret {name} is not in the table"
    for one in of_kind(objects, "HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in names:
            yield f"{path_of(one)} scales {target}"


def _referred(pod: Pod) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.spec["serviceAccountName"]
    for volume in pod.spec.get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for _, container in pod.containers():
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]
        for one in container.get("env", []):
            if "valueFrom" in one:
                yield "ConfigMap", one["valueFrom"]["configMapKeyRef"]["name"]


def mounts(objects: list[Manifest]) -> Iterator[str]:
    """Every mount has its volume and the reverse; Secrets are mounted as whole folders that nobody writes."""
    for pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounted: set[str] = set()
        for path, container in pod.containers():
            for mount in container.get("volumeMounts", []):
                mounted.add(mount["name"])
                volume = volumes.get(mount["name"], {})
                if not volume:
                    yield f"{path} mounts {mount['name']}, which is no volume"
                if "secret" in volume and (mount.get("subPath") or not mount.get("readOnly")):
                    yield f"{path} mounts the Secret {mount['name']} in another way than read-only and as a folder"
            if "/tmp" not in {mount["mountPath"] for mount in container.get("volumeMounts", [])}:  # noqa: S108
                yield f"{path} has no /tmp"
        yield from (f"{pod.path}: nothing mounts {name}" for name in set(volumes) - mounted)


def secrets(objects: list[Manifest]) -> Iterator[str]:
    """No secret stands in a manifest: none in a map, in a variable or in an argument, and no Secret is made."""
    yield from (path_of(one) for one in of_kind(objects, "Secret"))
    for path, name, value in _values(objects):
        if any(word in name.upper() for word in _SECRET_WORDS) and value and not value.startswith("/"):
            yield f"{path}: {name} has a value"


def _values(objects: list[Manifest]) -> Iterator[tuple[str, str, str]]:
    for one in of_kind(objects, "ConfigMap"):
        yield from ((path_of(one), name, value) for name, value in one["data"].items())
    for pod in pods(objects):
        for path, container in pod.containers():
            yield from ((path, each["name"], each.get("value", "")) for each in container.get("env", []))
            yield from (
                (path, argument.partition("=")[0], argument.partition("=")[2]) for argument in _words(container)
            )


def _words(container: Manifest) -> list[str]:
    words: list[Any] = [*container.get("command", []), *container.get("args", [])]
    return [str(word) for word in words]


def network(objects: list[Manifest]) -> Iterator[str]:
    """All pods have a policy of their own beside the one that forbids everything; names can be resolved; nobody from
    outside reaches what runs code.
    """
    policies = of_kind(objects, "NetworkPolicy")
    (nobody,) = [one["spec"] for one in policies if one["spec"]["podSelector"] == {}]
    if set(nobody["policyTypes"]) != {"Ingress", "Egress"} or nobody.get("ingress"):
        yield "not everything is forbidden"
    if {port["port"] for rule in nobody["egress"] for port in rule["ports"]} != {53}:
        yield "names cannot be resolved"
    for pod in pods(objects):
        if not [one for one in policies if (own := one["spec"]["podSelector"]) and selects(own, pod.labels)]:
            yield f"{pod.path} has no policy"
    for one in policies:
        for rule in one["spec"].get("ingress", []):
            reached = {port["port"] for port in rule.get("ports", [])}
            inside = rule["from"] == [{"podSelector": one["spec"]["podSelector"]}]
            if (not reached and not inside) or reached & {"client", "gcs-server", 10001, 6379}:
                yield f"{path_of(one)} lets others reach what runs code"


CHECKS = (selectors, ports, references, mounts, secrets, network)
