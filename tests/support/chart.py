"""Renders the chart with the real helm, and finds objects in what comes out."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "historay"
VALUE_SETS = sorted((CHART / "ci").glob("*-values.yaml"))
LEAST = {"serve": {"model": "demo", "store": "s3://bucket/store"}}  # what must be given
Object = dict[str, Any]


class Refused(Exception):
    """What helm said instead of rendering."""


def template(helm: Path, values: Mapping[str, Any], release: str = "demo", files: Sequence[Path] = ()) -> str:
    """Returns what ``helm template`` prints for the values on top of the value files; raises Refused."""
    command = [helm, "template", release, CHART, "--namespace", "team", "--values", "-"]
    command += [f"--values={file}" for file in files]
    # JSON is YAML, and quotes every string; but its escapes of what lies beyond 16 bits are not.
    done = subprocess.run(
        command, input=json.dumps(values, ensure_ascii=False), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def render(helm: Path, values: Mapping[str, Any] | None = None, **options: Any) -> list[Object]:
    """Returns the rendered objects for the values, with the least that is required below them."""
    merged = {**(values or {}), "serve": {**LEAST["serve"], **(values or {}).get("serve", {})}}
    return parse(template(helm, merged, **options))


def parse(text: str) -> list[Object]:
    """Returns the objects of a stream of YAML documents."""
    return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]


def only(objects: Sequence[Object], kind: str, name: str = "") -> Object:
    """Returns the one object of that kind whose name ends so."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def kinds(objects: Sequence[Object]) -> set[str]:
    return {item["kind"] for item in objects}


def ray_cluster(objects: Sequence[Object]) -> Object:
    """Returns the RayService's cluster."""
    cluster: Object = only(objects, "RayService")["spec"]["rayClusterConfig"]
    return cluster


def pod_templates(cluster: Object) -> dict[str, Object]:
    """Returns the pod templates of a Ray cluster: "head" and "workers"."""
    return {"head": cluster["headGroupSpec"]["template"], "workers": cluster["workerGroupSpecs"][0]["template"]}


def ray_container(pod: Object) -> Object:
    container: Object = pod["spec"]["containers"][0]
    return container


def serve_config(objects: Sequence[Object]) -> Object:
    """Returns the parsed serveConfigV2."""
    parsed: Object = yaml.safe_load(only(objects, "RayService")["spec"]["serveConfigV2"])
    return parsed
