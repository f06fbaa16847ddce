"""Brings the two parts of values.schema.json that are not written by hand in step: `serve`, and Kubernetes' own types.

    python helm/refresh_schema.py            # needs ../shared/data/kuberay-crds; run by `make chart`

`serve` is the schema of the pydantic ServeConfig. What values hand through to a pod (affinity, tolerations, environment,
volumes) is taken from the pod template in KubeRay's definition of RayService and closed, so that a misspelt field is
refused before anything is sent to a cluster.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from historay.serving.app import ServeConfig

HERE = Path(__file__).parent
SCHEMA = HERE / "historay" / "values.schema.json"
DEFINITION = HERE.parent.parent / "shared" / "data" / "kuberay-crds" / "ray.io_rayservices.yaml"
_NODE_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_TERMS = (
    "preferredDuringSchedulingIgnoredDuringExecution.preference",
    "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
)
# What Kubernetes' own schema of a pod lists, and KubeRay's definition leaves out.
_CHOICES = {
    **{
        f"affinity.nodeAffinity.{term}.{kind}.operator": _NODE_OPERATORS
        for term in _TERMS
        for kind in ("matchExpressions", "matchFields")
    },
    "tolerations.effect": ("NoExecute", "NoSchedule", "PreferNoSchedule"),
    "tolerations.operator": ("Equal", "Exists"),
    "volumes.azureDisk.cachingMode": ("None", "ReadOnly", "ReadWrite"),
    "volumes.azureDisk.kind": ("Dedicated", "Managed", "Shared"),
    "volumes.ephemeral.volumeClaimTemplate.spec.accessModes": (
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOnce",
        "ReadWriteOncePod",
    ),
    "volumes.ephemeral.volumeClaimTemplate.spec.volumeMode": ("Block", "Filesystem"),
    "volumes.hostPath.type": (
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ),
    "volumes.image.pullPolicy": ("Always", "IfNotPresent", "Never"),
    "volumeMounts.mountPropagation": ("Bidirectional", "HostToContainer", "None"),
}
_KEPT = ("type", "enum", "pattern", "format", "anyOf", "required", "minimum", "maximum")


def serve_schema() -> dict[str, Any]:
    """Returns the JSON schema of what may stand under `serve`."""
    return ServeConfig.model_json_schema()


def pod_schemas(definition: Path) -> dict[str, Any]:
    """Returns the closed schemas of the pod fields that values hand through, by name."""
    resource = yaml.load(definition.read_text(), Loader=yaml.CSafeLoader)
    version = next(version for version in resource["spec"]["versions"] if version["name"] == "v1")
    path = ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec")
    pod = version["schema"]["openAPIV3Schema"]
    for name in path:
        pod = pod["properties"][name]
    container = pod["properties"]["containers"]["items"]
    found = {name: closed(pod["properties"][name], name) for name in ("affinity", "tolerations", "volumes")}
    return found | {name: closed(container["properties"][name], name) for name in ("env", "volumeMounts")}


def closed(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """Returns what the schema says of types, without its prose, and with every object closed to unknown fields."""
    kept = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        kept["properties"] = {name: closed(field, f"{path}.{name}") for name, field in sorted(schema["properties"].items())}
        kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = closed(schema["additionalProperties"], path)
    if "items" in schema:
        kept["items"] = closed(schema["items"], path)
    elif path in _CHOICES:
        kept["enum"] = list(_CHOICES[path])
    return kept


def refreshed(schema: dict[str, Any], definition: Path) -> dict[str, Any]:
    """Returns the schema of all values with its two derived parts anew."""
    properties = schema["properties"] | {"serve": serve_schema()}
    return schema | {"properties": properties, "definitions": schema["definitions"] | pod_schemas(definition)}


if __name__ == "__main__":
    if not DEFINITION.is_file():
        sys.exit(f"{DEFINITION} is missing: put KubeRay's definitions there, or leave the schema as it is")
    SCHEMA.write_text(json.dumps(refreshed(json.loads(SCHEMA.read_text()), DEFINITION), indent=1) + "\n")
