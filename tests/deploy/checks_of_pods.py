"""Checks of single pods: what they may do, what they get, how they are watched and how they end."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from actstore_service.settings import Limits
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.settings import RayLimits
from tests.deploy.manifests import ROOT, Manifest, Pod, is_pinned, named, of_kind, path_of, pods, ray_clusters

# Beyond drain and grace: the time in which Kubernetes and the process notice.
TERMINATION_SECONDS_MORE = 10
# How long endpoints of a pod that stops may still be in use.
ENDPOINTS_SECONDS = 10
# What a thread that reads rows holds at most: eight messages of three MiB.
_THREAD_BYTES = 24 * 2**20
_BASE_BYTES = 512 * 2**20
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "": 1}
# Volumes that the restricted profile of Kubernetes knows and that this project needs.
_VOLUMES = {"emptyDir", "secret", "persistentVolumeClaim", "configMap"}
# The ports of the agents of a Ray node, as `ray start` names them, and the one where Ray's operator probes them.
AGENT_PORTS = (
    "metrics-export-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
)
_PROBED = {"dashboard-agent-listen-port": "52365"}
# Those of Ray's other processes, and those that Linux hands out: a connection may have one before an agent does.
_RAY_PORTS = {6379, 8265, 10001, 44217, 44227}
_HANDED_OUT = range(32768, 61000)
_HOST = ("hostNetwork", "hostPID", "hostIPC", "hostUsers")
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def bytes_of(quantity: str) -> int:
    """Returns the bytes of `4Gi` or `536870912`."""
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti|)", str(quantity))
    assert found, quantity
    return int(found[1]) * _UNITS[found[2]]


def _with_autoscalers(objects: Iterable[Manifest]) -> Iterator[Pod]:
    """Yields all pods; the heads of clusters that scale have the container that Ray's operator adds."""
    objects = list(objects)
    scaling = {
        f"{path_of(one)}/head": cluster["autoscalerOptions"]
        for one in objects
        for cluster in ray_clusters(one)
        if cluster.get("enableInTreeAutoscaling")
    }
    for pod in pods(objects):
        added = scaling.get(pod.path)
        more = [{"name": "autoscaler", "image": pod.spec["containers"][0]["image"], **added}] if added else []
        yield replace(pod, spec={**pod.spec, "containers": [*pod.spec["containers"], *more]})


def restricted(objects: list[Manifest]) -> Iterator[str]:
    """Every pod and container has the restricted security context, and a read-only root."""
    for pod in _with_autoscalers(objects):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not isinstance(context.get("runAsUser"), int):
            yield f"{pod.path} does not run as a numbered user"
        elif context["runAsUser"] < 1000:
            yield f"{pod.path} runs as a user of the system"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.path} has no seccomp profile"
        yield from (f"{pod.path} asks for {name}" for name in _HOST if pod.spec.get(name))
        for volume in pod.spec.get("volumes", []):
            if not set(volume) - {"name"} <= _VOLUMES:
                yield f"{pod.path} mounts {volume}"
        for path, container in pod.containers():
            if container.get("securityContext") != _RESTRICTED:
                yield f"{path} has the security context {container.get('securityContext')}"


def api_tokens(objects: list[Manifest]) -> Iterator[str]:
    """No pod gets a token of the API server, except the head of a cluster that scales."""
    scaling = {
        f"{path_of(one)}/head" for one in objects for found in ray_clusters(one) if found.get("enableInTreeAutoscaling")
    }
    for pod in pods(objects):
        if pod.spec.get("automountServiceAccountToken") is not (pod.path in scaling):
            yield f"{pod.path}: automountServiceAccountToken"


def resources(objects: list[Manifest]) -> Iterator[str]:
    """Every container asks for CPU and memory, and gets no more memory than it asks for; no CPU is limited."""
    for pod in _with_autoscalers(objects):
        for path, container in pod.containers():
            asked, limit = (container.get("resources", {}).get(name, {}) for name in ("requests", "limits"))
            if not {"cpu", "memory"} <= set(asked):
                yield f"{path} requests {set(asked)}"
            elif asked["memory"] != limit.get("memory"):
                yield f"{path}: memory requested and limited differ"
            if "cpu" in limit:
                yield f"{path} has a limit of CPU"


def ray_sizes(objects: list[Manifest]) -> Iterator[str]:
    """Ray is told what its pods have: CPUs, GPUs, and shared memory that lies within the limit of memory."""
    for pod in (pod for pod in pods(objects) if pod.ray):
        found = pod.spec["containers"][0]["resources"]
        gpus = found["limits"].get("nvidia.com/gpu", "0")
        if pod.start.get("num-gpus", "0") != gpus:
            yield f"{pod.path}: num-gpus is not nvidia.com/gpu"
        if pod.start.get("num-cpus") != ("0" if pod.ray == "head" else found["requests"]["cpu"]):
            yield f"{pod.path}: num-cpus is {pod.start.get('num-cpus')}"
        if bytes_of(pod.start.get("object-store-memory", "0")) * 3 > bytes_of(found["limits"]["memory"]):
            yield f"{pod.path}: object-store-memory is more than a third of the memory"
        if not pod.start.get("object-store-memory"):
            yield f"{pod.path}: object-store-memory is not set"
        if gpus != "0" and not (pod.spec.get("tolerations") and pod.spec.get("nodeSelector")):
            yield f"{pod.path} has GPUs, and neither toleration nor node selector"


def agent_ports(objects: list[Manifest]) -> Iterator[str]:
    """Every node of Ray is told the ports of its agents, for which it would wait else, and nothing else has them."""
    for pod in (pod for pod in pods(objects) if pod.ray):
        told = {name: str(pod.start.get(name, "0")) for name in AGENT_PORTS}
        others = _RAY_PORTS | {port for name, port in pod.ports().items() if name != "metrics"}
        for name, port in told.items():
            if not int(port) or int(port) in others or list(told.values()).count(port) > 1:
                yield f"{pod.path}: {name} is {port}, which is none or another's"
            if int(port) in _HANDED_OUT and port != _PROBED.get(name):
                yield f"{pod.path}: {name} is {port}, which Linux may give to a connection"
            if port != _PROBED.get(name, port):
                yield f"{pod.path}: {name} is {port}, and Ray's operator asks at {_PROBED[name]}"
        if told["metrics-export-port"] != str(pod.ports().get("metrics")):
            yield f"{pod.path}: its metrics are at {told['metrics-export-port']}, and its port is another"


def images(objects: list[Manifest]) -> Iterator[str]:
    """Every image has the tag of a version, or a digest."""
    for pod in _with_autoscalers(objects):
        yield from (f"{path}: image {one['image']}" for path, one in pod.containers() if not is_pinned(one["image"]))


def ray_versions(objects: list[Manifest]) -> Iterator[str]:
    """Clusters name the version of Ray that is installed into the image."""
    (line,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for one in objects:
        for cluster in ray_clusters(one):
            if cluster["rayVersion"] != line:
                yield f"{path_of(one)}: rayVersion is not {line}"
            if cluster.get("authOptions", {}).get("mode") != "token":
                yield f"{path_of(one)}: Ray asks for no token"


def probes(objects: list[Manifest]) -> Iterator[str]:
    """The service has three probes over HTTP, the last of which is patient. Ray's operator adds those of Ray's pods."""
    for path, container in _of_service(objects):
        wanted = {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
        for name, asked in wanted.items():
            probe = container.get(name, {})
            if probe.get("httpGet") != {"path": asked, "port": "metrics"}:
                yield f"{path}: {name} asks {probe.get('httpGet')}"
            elif probe.get("timeoutSeconds", 1) < 5:
                yield f"{path}: {name} waits {probe.get('timeoutSeconds', 1)} s"
        if container.get("livenessProbe", {}).get("failureThreshold", 3) < 6:
            yield f"{path}: a busy process would be killed"


def _of_service(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for pod in pods(objects):
        if pod.path.startswith("Deployment/"):
            yield from pod.containers()


def termination(objects: list[Manifest]) -> Iterator[str]:
    """A pod of the service has time to drain and to finish its calls."""
    found, limits = _settings(objects), Limits()
    drain = float(found.get("ACTSTORE_LIMITS_DRAIN_SECONDS", limits.drain_seconds))
    grace = float(found.get("ACTSTORE_LIMITS_GRACE_SECONDS", limits.grace_seconds))
    needed = drain + grace + TERMINATION_SECONDS_MORE
    if drain < ENDPOINTS_SECONDS:
        yield f"a pod closes after {drain} s, and others still call it"
    for pod in pods(objects):
        given = pod.spec.get("terminationGracePeriodSeconds", 30)
        if pod.path.startswith("Deployment/") and given < needed:
            yield f"{pod.path} is killed after {given} s, and needs {needed:.0f} s"


def memory_of_service(objects: list[Manifest]) -> Iterator[str]:
    """The service has memory for the rows that it caches, for messages that wait for readers, and for its threads."""
    limits = Limits()
    threads = limits.catalog_threads + limits.read_threads + limits.stream_threads
    held = int(_settings(objects)["ACTSTORE_HELD_ROW_BYTES"]) + limits.waiting_bytes
    needed = held + threads * _THREAD_BYTES + _BASE_BYTES
    for path, container in _of_service(objects):
        given = bytes_of(container["resources"]["limits"]["memory"])
        if given < needed:
            yield f"{path} has {given} bytes of memory, and may need {needed}"


def _settings(objects: list[Manifest]) -> dict[str, str]:
    (found,) = [
        one["data"] for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"].startswith("actstore-service")
    ]
    return found


def rollout(objects: list[Manifest]) -> Iterator[str]:
    """The service is replaced without a gap, stands on several nodes, and leaves nodes that are drained."""
    spec = named(objects, "Deployment")["spec"]
    rolling = spec.get("strategy", {}).get("rollingUpdate", {})
    if (rolling.get("maxUnavailable"), rolling.get("maxSurge")) != (0, 1):
        yield f"the rollout is {rolling}"
    if spec.get("minReadySeconds", 0) < 10:
        yield "a replica counts as there as soon as it is ready"
    if not spec["template"]["spec"].get("topologySpreadConstraints"):
        yield "replicas may all stand on one node"
    scaled = [one["spec"]["scaleTargetRef"]["name"] for one in of_kind(objects, "HorizontalPodAutoscaler")]
    if ("replicas" in spec) == bool(scaled):
        yield "the number of replicas is given twice or not at all"
    least = named(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"] if scaled else spec.get("replicas", 1)
    if least < 2:
        yield f"there may be {least} replica"
    budget = named(objects, "PodDisruptionBudget")["spec"]
    if (budget.get("maxUnavailable"), budget.get("unhealthyPodEvictionPolicy")) != (1, "AlwaysAllow"):
        yield f"the disruption budget is {budget}"


def ray_lifetimes(objects: list[Manifest]) -> Iterator[str]:
    """A cluster that is replaced ends after its longest work; a cluster of a job ends with it."""
    for one in of_kind(objects, "RayService"):
        if one["spec"].get("rayClusterDeletionDelaySeconds", 60) < 3600:
            yield f"{path_of(one)}: work of an hour would be cut off"
    for one in of_kind(objects, "RayJob"):
        spec = one["spec"]
        wanted = ("activeDeadlineSeconds", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimit")
        yield from (f"{path_of(one)}: no {name}" for name in wanted if name not in spec)
        if not spec.get("shutdownAfterJobFinishes"):
            yield f"{path_of(one)}: its GPUs outlive it"
        group = spec["rayClusterSpec"]["workerGroupSpecs"][-1]
        if group["minReplicas"] or not spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield f"{path_of(one)}: its GPUs do not start from none"


def elastic(objects: list[Manifest]) -> Iterator[str]:
    """Workers are told how many GPUs an autoscaler may bring, and keep none where their group may have none."""
    (said,) = [
        one["data"] for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"].startswith("actstore-workers")
    ]
    for one in objects:
        for cluster in ray_clusters(one):
            group = cluster["workerGroupSpecs"][-1]
            scaled = cluster.get("enableInTreeAutoscaling", False)
            most = int(group["rayStartParams"]["num-gpus"]) * group["maxReplicas"]
            if said.get("ACTSTORE_RAY_GPUS_MAX") != (str(most) if scaled else None):
                yield f"{path_of(one)} may have {most} GPUs, and is told {said.get('ACTSTORE_RAY_GPUS_MAX')}"
            if scaled and not group.get("idleTimeoutSeconds"):
                yield f"{path_of(one)} does not say when a GPU that is idle goes"
            kept = int(said.get("ACTSTORE_RAY_MODEL_REPLICAS_MIN", RayLimits().model_replicas_min))
            kept += int(said.get("ACTSTORE_COORDINATOR_WORKERS_MIN", CoordinatorLimits().workers_min))
            if kept and not group["minReplicas"]:
                yield f"{path_of(one)} keeps {kept} workers on a group that may have no node"
            if scaled and group["replicas"] != group["minReplicas"]:
                yield f"{path_of(one)} begins with {group['replicas']} GPUs that nothing needs"


CHECKS = (
    restricted,
    api_tokens,
    resources,
    ray_sizes,
    agent_ports,
    images,
    ray_versions,
    probes,
    termination,
    memory_of_service,
    rollout,
    ray_lifetimes,
    elastic,
)
