"""The manifests of every overlay pass every check, and every check finds a mistake that is planted for it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy import checks_of_code, checks_of_names, checks_of_pods
from tests.deploy.checks_of_code import serve_config
from tests.deploy.checks_of_schemas import wrong_fields
from tests.deploy.manifests import (
    OVERLAYS,
    Manifest,
    built,
    built_by,
    is_pinned,
    manifests,
    named,
    of_kind,
    other_kubectl,
    pods,
)

Check = Callable[[list[Manifest]], Iterator[str]]
CHECKS: tuple[Check, ...] = (*checks_of_pods.CHECKS, *checks_of_names.CHECKS, *checks_of_code.CHECKS)
BY_NAME = {check.__name__: check for check in CHECKS}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_manifests_pass(check: Check, overlay: str) -> None:
    assert list(check(manifests(overlay))) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_field_is_one_of_its_schema(overlay: str) -> None:
    assert wrong_fields(manifests(overlay)) == []


def _first(objects: list[Manifest], kind: str, name: str = "") -> Any:
    return named(objects, kind, name)["spec"]


def _service(objects: list[Manifest]) -> Any:
    return _first(objects, "Deployment")["template"]["spec"]


def _container(objects: list[Manifest]) -> Any:
    return _service(objects)["containers"][0]


def _volume(objects: list[Manifest], name: str) -> Any:
    return next(one for one in _service(objects)["volumes"] if one["name"] == name)


def _mount(objects: list[Manifest], name: str) -> Any:
    return next(one for one in _container(objects)["volumeMounts"] if one["name"] == name)


def _ray(objects: list[Manifest], group: int = 1) -> Any:
    return _first(objects, "RayService")["rayClusterConfig"]["workerGroupSpecs"][group]


def _ray_container(objects: list[Manifest]) -> Any:
    return _ray(objects)["template"]["spec"]["containers"][0]


def _map(objects: list[Manifest], prefix: str) -> Any:
    (found,) = [one["data"] for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"].startswith(prefix)]
    return found


def _policy(objects: list[Manifest], name: str) -> Any:
    return _first(objects, "NetworkPolicy", name)


def _rule(objects: list[Manifest], name: str) -> Any:
    return _first(objects, "PrometheusRule", name)["groups"][0]["rules"][0]


def _retext(objects: list[Manifest], old: str, new: str) -> None:
    spec = _first(objects, "RayService")
    assert old in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)


# Each mistake is one that a person made once, or could make tomorrow: the check that finds it, and the change.
MISTAKES: list[tuple[str, Callable[[list[Manifest]], Any]]] = [
    ("restricted", lambda all_: _container(all_).pop("securityContext")),
    ("restricted", lambda all_: _service(all_)["securityContext"].update(runAsUser=0)),
    ("restricted", lambda all_: _service(all_)["securityContext"].pop("seccompProfile")),
    ("restricted", lambda all_: _service(all_).update(hostNetwork=True)),
    ("restricted", lambda all_: _service(all_)["volumes"].append({"name": "node", "hostPath": {"path": "/"}})),
    ("restricted", lambda all_: _ray_container(all_)["securityContext"].update(readOnlyRootFilesystem=False)),
    (
        "restricted",
        lambda all_: _first(all_, "RayService")["rayClusterConfig"]["autoscalerOptions"].pop("securityContext"),
    ),
    ("restricted", lambda all_: _first(all_, "RayJob")["submitterPodTemplate"]["spec"].pop("securityContext")),
    ("api_tokens", lambda all_: _service(all_).pop("automountServiceAccountToken")),
    (
        "api_tokens",
        lambda all_: _first(all_, "RayService")["rayClusterConfig"]["headGroupSpec"]["template"]["spec"].update(
            automountServiceAccountToken=False
        ),
    ),
    ("resources", lambda all_: _container(all_)["resources"]["limits"].update(cpu="2")),
    ("resources", lambda all_: _container(all_)["resources"]["limits"].update(memory="8Gi")),
    ("resources", lambda all_: _ray_container(all_)["resources"].pop("requests")),
    ("ray_sizes", lambda all_: _ray(all_)["rayStartParams"].pop("num-gpus")),
    ("ray_sizes", lambda all_: _ray(all_)["rayStartParams"].update({"object-store-memory": "68719476736"})),
    ("ray_sizes", lambda all_: _ray(all_)["template"]["spec"].pop("tolerations")),
    ("ray_sizes", lambda all_: _ray(all_, 0)["rayStartParams"].pop("num-cpus")),
    ("agent_ports", lambda all_: _ray(all_)["rayStartParams"].pop("runtime-env-agent-port")),
    ("agent_ports", lambda all_: _ray(all_)["rayStartParams"].update({"dashboard-agent-grpc-port": "8000"})),
    ("agent_ports", lambda all_: _ray(all_)["rayStartParams"].update({"dashboard-agent-grpc-port": "8267"})),
    ("agent_ports", lambda all_: _ray(all_)["rayStartParams"].update({"dashboard-agent-grpc-port": "52366"})),
    ("agent_ports", lambda all_: _ray(all_, 0)["rayStartParams"].update({"dashboard-agent-listen-port": "8268"})),
    ("agent_ports", lambda all_: _ray(all_, 0)["rayStartParams"].update({"metrics-export-port": "8081"})),
    ("images", lambda all_: _container(all_).update(image="registry.example.org/actstore-service:latest")),
    ("images", lambda all_: _ray_container(all_).update(image="actstore-workers")),
    ("ray_versions", lambda all_: _first(all_, "RayService")["rayClusterConfig"].update(rayVersion="2.51.0")),
    ("ray_versions", lambda all_: _first(all_, "RayJob")["rayClusterSpec"].pop("authOptions")),
    ("probes", lambda all_: _container(all_)["readinessProbe"]["httpGet"].update(path="/ready")),
    ("probes", lambda all_: _container(all_).pop("startupProbe")),
    ("probes", lambda all_: _container(all_)["livenessProbe"].update(timeoutSeconds=1)),
    ("probes", lambda all_: _container(all_)["livenessProbe"].update(failureThreshold=3)),
    ("termination", lambda all_: _service(all_).update(terminationGracePeriodSeconds=29)),
    ("termination", lambda all_: _map(all_, "actstore-service").update(ACTSTORE_LIMITS_GRACE_SECONDS="60")),
    ("termination", lambda all_: _map(all_, "actstore-service").pop("ACTSTORE_LIMITS_DRAIN_SECONDS")),
    ("memory_of_service", lambda all_: _container(all_)["resources"]["limits"].update(memory="1Gi")),
    ("rollout", lambda all_: _first(all_, "Deployment").update(replicas=2)),
    ("rollout", lambda all_: _first(all_, "Deployment")["strategy"]["rollingUpdate"].update(maxUnavailable=1)),
    ("rollout", lambda all_: _first(all_, "PodDisruptionBudget").pop("unhealthyPodEvictionPolicy")),
    ("rollout", lambda all_: _first(all_, "HorizontalPodAutoscaler").update(minReplicas=1)),
    ("ray_lifetimes", lambda all_: _first(all_, "RayService").pop("rayClusterDeletionDelaySeconds")),
    ("ray_lifetimes", lambda all_: _first(all_, "RayJob").update(shutdownAfterJobFinishes=False)),
    ("ray_lifetimes", lambda all_: _first(all_, "RayJob")["rayClusterSpec"].pop("enableInTreeAutoscaling")),
    ("elastic", lambda all_: _map(all_, "actstore-workers").update(ACTSTORE_RAY_GPUS_MAX="4")),
    ("elastic", lambda all_: _map(all_, "actstore-workers").pop("ACTSTORE_RAY_MODEL_REPLICAS_MIN")),
    ("elastic", lambda all_: _map(all_, "actstore-workers").update(ACTSTORE_COORDINATOR_WORKERS_MIN="1")),
    ("elastic", lambda all_: _ray(all_).pop("idleTimeoutSeconds")),
    ("elastic", lambda all_: _ray(all_).update(replicas=4)),
    ("selectors", lambda all_: _first(all_, "Service", "actstore")["selector"].update({"app": "actstore"})),
    ("selectors", lambda all_: _first(all_, "Deployment")["template"]["metadata"].update(labels={"a": "b"})),
    ("selectors", lambda all_: _first(all_, "ServiceMonitor")["endpoints"][0].update(port="http")),
    ("selectors", lambda all_: _first(all_, "PodMonitor", "actstore-head")["selector"]["matchLabels"].update(a="b")),
    (
        "selectors",
        lambda all_: _policy(all_, "actstore-workers")["ingress"][1]["from"][0]["podSelector"].update(
            matchLabels={"app": "service"}
        ),
    ),
    ("ports", lambda all_: _first(all_, "Service", "actstore")["ports"][0].update(targetPort="http2")),
    ("ports", lambda all_: _container(all_)["livenessProbe"]["httpGet"].update(port="health")),
    ("ports", lambda all_: _policy(all_, "actstore-service")["egress"][0]["ports"][0].update(port="gateway")),
    (
        "ports",
        lambda all_: _first(all_, "PodMonitor", "actstore-head")["podMetricsEndpoints"][0].update(port="prometheus"),
    ),
    ("references", lambda all_: _volume(all_, "store")["secret"].update(secretName="actstore-s3")),
    ("references", lambda all_: _service(all_).update(serviceAccountName="default")),
    ("references", lambda all_: _ray_container(all_)["envFrom"][0]["configMapRef"].update(name="actstore-store")),
    ("references", lambda all_: _first(all_, "HorizontalPodAutoscaler")["scaleTargetRef"].update(name="actstore")),
    ("mounts", lambda all_: _mount(all_, "store").update(subPath="credentials")),
    ("mounts", lambda all_: _mount(all_, "tmp").update(mountPath="/scratch")),
    ("mounts", lambda all_: _volume(all_, "store").update(name="stores")),
    ("secrets", lambda all_: _map(all_, "actstore-service").update(ACTSTORE_GATEWAY_TOKEN="hunter2")),
    ("secrets", lambda all_: _container(all_).update(env=[{"name": "ACTSTORE_S3_SECRET_KEY", "value": "hunter2"}])),
    ("secrets", lambda all_: _container(all_)["args"].append("--token=hunter2")),
    ("secrets", lambda all_: all_.append({"kind": "Secret", "metadata": {"name": "keys"}, "data": {}})),
    ("network", lambda all_: _policy(all_, "actstore-nobody").update(policyTypes=["Ingress"])),
    ("network", lambda all_: _policy(all_, "actstore-nobody")["egress"].clear()),
    ("network", lambda all_: _policy(all_, "actstore-workers")["ingress"][1].pop("ports")),
    ("network", lambda all_: _policy(all_, "actstore-workers")["ingress"][1]["ports"].append({"port": "client"})),
    ("network", lambda all_: all_.remove(named(all_, "NetworkPolicy", "actstore-canary"))),
    ("network", lambda all_: _policy(all_, "actstore-workers")["egress"].pop()),
    ("settings", lambda all_: _map(all_, "actstore-service").update(ACTSTORE_METRIC_LISTEN="0.0.0.0:1")),
    ("settings", lambda all_: _map(all_, "actstore-workers").update(ACTSTORE_LISTEN="0.0.0.0:1")),
    ("files", lambda all_: _map(all_, "actstore-store").update(ACTSTORE_S3_CREDENTIALS_FILE="/etc/credentials")),
    ("files", lambda all_: _map(all_, "actstore-store").update(ACTSTORE_S3_CREDENTIALS_FILE="/etc/actstore/store/key")),
    ("entry_points", lambda all_: _container(all_).update(args=["-m", "actstore_server"])),
    ("entry_points", lambda all_: _first(all_, "RayJob").update(entrypoint="python -P -m actstore_workers")),
    (
        "entry_points",
        lambda all_: _first(all_, "CronJob", "actstore-fsck")["jobTemplate"]["spec"]["template"]["spec"]["containers"][
            0
        ]["args"].append("--repair"),
    ),
    ("entry_points", lambda all_: _retext(all_, "proxy_streams.add_services", "proxy_streams.add_service")),
    ("entry_points", lambda all_: _retext(all_, ":build", ":make")),
    ("addresses", lambda all_: _retext(all_, "port: 9000", "port: 9001")),
    ("addresses", lambda all_: _retext(all_, "host: 0.0.0.0", "host: 127.0.0.1")),
    ("addresses", lambda all_: _retext(all_, "enable_reflection: false", "enable_reflection: true")),
    ("addresses", lambda all_: _map(all_, "actstore-service").update(ACTSTORE_LISTEN="0.0.0.0:7434")),
    ("addresses", lambda all_: _map(all_, "actstore-service").update(ACTSTORE_GATEWAY="actstore-workers:9000")),
    ("metrics", lambda all_: _rule(all_, "actstore-jobs").update(expr="kube_job_failed > 0")),
    ("metrics", lambda all_: _rule(all_, "actstore").update(expr="rate(actstore_call_total[5m]) > 0")),
    ("metrics", lambda all_: _rule(all_, "actstore")["annotations"].update(runbook_url="docs/runbooks.md#nothing")),
    ("metrics", lambda all_: all_.remove(named(all_, "CronJob", "actstore-canary"))),
    (
        "metrics",
        lambda all_: _first(all_, "HorizontalPodAutoscaler")["metrics"][0]["pods"]["metric"].update(name="calls"),
    ),
]


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{n}-{name}" for n, (name, _) in enumerate(MISTAKES)])
def test_a_planted_mistake_is_found(name: str, mistake: Callable[[list[Manifest]], Any]) -> None:
    check, objects = BY_NAME[name], manifests("fleet")
    before = set(check(objects))
    mistake(objects)
    assert set(check(objects)) - before


def test_every_check_has_a_planted_mistake() -> None:
    assert set(BY_NAME) == {name for name, _ in MISTAKES}


@pytest.mark.parametrize(
    ("kind", "misspelt"),
    [("Deployment", "replicaz"), ("RayService", "maxReplica"), ("RayJob", "suspended"), ("PodMonitor", "endpoints")],
)
def test_a_misspelt_field_is_found(kind: str, misspelt: str) -> None:
    objects = [one for one in manifests("fleet") if one["kind"] == kind][:1]
    spec = objects[0]["spec"]
    (spec["rayClusterConfig"]["workerGroupSpecs"][0] if kind == "RayService" else spec)[misspelt] = 1
    assert wrong_fields(objects)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_another_kubectl_builds_the_same(overlay: str) -> None:
    kubectl = other_kubectl()
    if kubectl is None:
        pytest.skip("this machine has no kubectl beside the one of the environment")
    assert built_by(kubectl, overlay) == built(overlay)


def test_images_are_pinned_by_version_or_digest() -> None:
    digest = "sha256:" + "0" * 64
    assert is_pinned("registry.example.org/actstore-service:0.2.0")
    assert is_pinned(f"registry.example.org:5000/lab/actstore-service:0.2.0@{digest}")
    assert not is_pinned("registry.example.org/actstore-service:latest")
    assert not is_pinned("registry.example.org/actstore-service")
    assert not is_pinned("actstore-service:0.2.0")


def test_both_overlays_have_the_same_workers_but_for_their_sizes() -> None:
    """The application of the workers is one text, whatever the overlay."""
    assert len({str(serve_config(named(manifests(overlay), "RayService"))) for overlay in OVERLAYS}) == 1
    assert all(pods(manifests(overlay)) for overlay in OVERLAYS)
