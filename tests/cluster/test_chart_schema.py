"""The values' schema and documents are in step with the code, and closed: nothing misspelt gets as far as a cluster."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from chart import CHART
from gotools import go_program

from historay.serving.app import ServeConfig

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
REFRESH = "run `make chart`"


def _objects(schema: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, with its place."""
    if isinstance(schema, dict):
        if "properties" in schema and "type" in schema:
            yield where, schema
        for key, value in schema.items():
            yield from _objects(value, f"{where}/{key}")
    if isinstance(schema, list):
        for item in schema:
            yield from _objects(item, where)


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "podLabels":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_serve_takes_what_the_serve_config_takes() -> None:
    assert SCHEMA["properties"]["serve"] == ServeConfig.model_json_schema(), REFRESH


def test_the_types_of_kubernetes_are_those_of_kuberays_definition(kuberay_crds: Path) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("refresh_schema", CHART.parent / "refresh_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.refreshed(SCHEMA, kuberay_crds / "ray.io_rayservices.yaml") == SCHEMA, REFRESH


def test_every_object_of_the_schema_is_closed() -> None:
    found = list(_objects(SCHEMA))
    assert len(found) > 100
    assert [where for where, schema in found if schema.get("additionalProperties") is not False] == []


def test_every_value_has_a_default_a_sentence_and_a_place_in_the_schema() -> None:
    text = (CHART / "values.yaml").read_text()
    sentences = {line.strip() for line in re.findall(r"# -- .*\n(?: *#.*\n)*( *[A-Za-z]+):", text)}
    for path in _leaves(VALUES):
        schema = SCHEMA
        for name in path.split("."):
            if "$ref" in schema:
                schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]]
            if "properties" not in schema:  # a label's own name
                break
            assert name in schema["properties"], path
            schema = schema["properties"][name]
        else:
            assert path.rsplit(".", 1)[-1] in sentences, f"{path} has no '# --' sentence"


def test_the_readme_names_every_value() -> None:
    readme = (CHART / "README.md").read_text()
    assert [
        path for path in _leaves(VALUES) if f"| {path} |" not in readme and not path.startswith("metrics.dashboard.l")
    ] == []


def test_the_readme_is_what_helm_docs_makes_of_the_values(tmp_path: Path) -> None:
    program = go_program(Path(__file__).parent / "helm-docs", "github.com/norwoodj/helm-docs/cmd/helm-docs")
    shutil.copytree(CHART, tmp_path / "historay")
    subprocess.run([program, "--chart-search-root", tmp_path], check=True, capture_output=True, timeout=60)
    assert (tmp_path / "historay" / "README.md").read_text() == (CHART / "README.md").read_text(), REFRESH


def test_helm_lint_finds_nothing(helm: Path) -> None:
    for values in (CHART / "ci").glob("*-values.yaml"):
        done = subprocess.run(
            [helm, "lint", CHART, "--strict", "--quiet", "-f", values], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_the_dashboard_asks_for_metrics_that_this_ray_has() -> None:
    import ray

    # Ray's own dashboards name its metrics as Prometheus sees them.
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    known = "\n".join(path.read_text() for path in panels.glob("*_panels.py"))
    dashboard = json.loads((CHART / "dashboards" / "historay.json").read_text())
    asked = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in re.findall(r"ray_\w+", target["expr"])
    }
    # A label, and our own, which tests/serving/test_metrics.py checks.
    asked = {name for name in asked if name != "ray_io_cluster" and not name.startswith("ray_historay_")}
    assert len(asked) >= 8
    assert [name for name in asked if not re.search(rf"\b{name}\b", known)] == []


def test_the_chart_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"', (CHART.parents[1] / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version[1]
