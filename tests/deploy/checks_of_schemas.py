"""Checks manifests against schemas: Kubernetes' own strictly, KubeRay's with unknown fields refused, and those of
Prometheus's operator as far as they are used here.
"""

import json
import lzma
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

from tests.deploy.manifests import Manifest, path_of

# The oldest Kubernetes that the manifests are made for (its pods may sleep before they stop), and the newest known.
VERSIONS = ("1.30", "1.37")
_KUBERAY = Path(__file__).with_name("schemas") / "kuberay-v1.json.xz"

_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_SELECTOR = {"type": "object", "properties": {"matchLabels": _LABELS}}
_RELABELINGS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "sourceLabels": {"type": "array", "items": {"type": "string"}},
            "targetLabel": {"type": "string"},
            "action": {"type": "string"},
            "regex": {"type": "string"},
        },
    },
}
_ENDPOINTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["port"],
        "properties": {
            **dict.fromkeys(("port", "path", "interval", "scrapeTimeout", "scheme"), {"type": "string"}),
            "honorLabels": {"type": "boolean"},
            "relabelings": _RELABELINGS,
        },
    },
}
_RULE = {
    "type": "object",
    "required": ["expr"],
    "properties": {
        **dict.fromkeys(("record", "alert", "expr", "for", "keep_firing_for"), {"type": "string"}),
        "labels": _LABELS,
        "annotations": _LABELS,
    },
}
_GROUP = {
    "type": "object",
    "required": ["name", "rules"],
    "properties": {
        "name": {"type": "string"},
        "interval": {"type": "string"},
        "rules": {"type": "array", "items": _RULE},
    },
}


def _object(**spec: Any) -> dict[str, Any]:
    """The schema of an object with this specification, all of which it must have."""
    return {
        "type": "object",
        "required": ["spec"],
        "properties": {
            **dict.fromkeys(("apiVersion", "kind"), {"type": "string"}),
            "metadata": {"type": "object"},
            "spec": {"type": "object", "required": list(spec), "properties": spec},
        },
    }


# Written from the operator's documentation, with no more fields than the manifests use.
_MONITORING = {
    "ServiceMonitor": _object(selector=_SELECTOR, endpoints=_ENDPOINTS),
    "PodMonitor": _object(selector=_SELECTOR, podMetricsEndpoints=_ENDPOINTS),
    "PrometheusRule": _object(groups={"type": "array", "items": _GROUP}),
}


def wrong_fields(objects: Iterable[Manifest]) -> list[str]:
    """Returns what the schemas say against the objects."""
    return [f"{path_of(one)}: {wrong}" for one in objects for wrong in _wrong(one)]


def _wrong(one: Manifest) -> Iterator[str]:
    custom = _validators().get(one["kind"])
    if custom:
        yield from (f"{error.json_path}: {error.message}" for error in custom.iter_errors(one))
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{version}: {error}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{version}: there is no schema of {one['apiVersion']}"


@cache
def _validators() -> dict[str, Any]:
    schemas = {**json.loads(lzma.decompress(_KUBERAY.read_bytes())), **_MONITORING}
    return {kind: Draft202012Validator(closed(schema)) for kind, schema in schemas.items()}


def closed(schema: Any) -> Any:
    """Returns a schema that refuses each field that it does not name. An object without any named field stays open."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(one) for name, one in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found
