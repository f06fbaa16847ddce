"""JSON schemas for kubeconform, made from what the API server itself publishes, custom resources included, and closed."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from apiserver import Cluster

LOCATION = "{{.ResourceKind}}{{.KindSuffix}}.json"  # of a schema below the folder, in kubeconform's words


def write_schemas(cluster: Cluster, folder: Path, kinds: Collection[str]) -> None:
    """Writes one file for each of the kinds, in every group and version that has it."""
    for document in cluster.read("/openapi/v3")["paths"].values():
        text = cluster.ask(document["serverRelativeURL"])
        if not any(f'"kind":"{kind}"'.encode() in text for kind in kinds):
            continue
        schemas = json.loads(text)["components"]["schemas"]
        _close(schemas)
        for name, schema in schemas.items():
            for group in schema.get("x-kubernetes-group-version-kind", []):
                if group["kind"] in kinds:
                    whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
                    (folder / _file_name(group)).write_text(json.dumps(whole))


def _file_name(group: dict[str, str]) -> str:
    parts = [group["kind"].lower(), group["group"].split(".")[0], group["version"]]
    return "-".join(part for part in parts if part) + ".json"


def _close(schema: Any) -> None:
    """Closes every object that lists its fields, unless the server keeps what it does not know there."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    if isinstance(schema, dict):
        # A field may itself be called "properties": only a mapping of fields to schemas is one.
        if isinstance(schema.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
