"""Whatever the values' schema allows renders into objects that the API server's own schemas allow, or is refused in words."""

import json
import subprocess
from pathlib import Path
from typing import Any

from apiserver import Cluster
from chart import CHART, LEAST, VALUE_SETS, Refused, kinds, parse, template
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from kubeschemas import LOCATION, write_schemas
from values_strategy import values_of

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
NUM_SETS = 200
# Two values that disagree: what templates/_helpers.tpl refuses.
DISAGREEMENTS = (
    "no DNS-1035 label",
    "is more than",
    "use one",
    "leave ingress and httpRoute off",
    "could wake one",
    "holds no replica",
)
# Else nearly every drawn replica is larger than every drawn worker.
FITTING = st.fixed_dictionaries({"cpus_per_replica": st.integers(1, 4), "min_replicas": st.integers(1, 4)})
CPUS = st.sampled_from(["4", "4500m", "8.0", "0.016k"])


@st.composite
def value_sets(draw: st.DrawFn) -> dict[str, Any]:
    values: dict[str, Any] = draw(values_of({**SCHEMA, "required": []}, SCHEMA))
    serve = draw(values_of({**SCHEMA["properties"]["serve"], "required": []}, SCHEMA))
    workers = values.get("workers", {}) | {"cpu": draw(CPUS)}
    return values | {"workers": workers, "serve": serve | draw(FITTING) | LEAST["serve"] | {"host": "0.0.0.0"}}


def test_200_random_value_sets_render_into_what_the_server_allows(
    cluster: Cluster, helm: Path, kubeconform: Path, tmp_path: Path
) -> None:
    rendered: dict[str, dict[str, Any]] = {}

    # No shrinking: each try is a process, and hundreds of them would tell little more.
    @settings(
        max_examples=NUM_SETS,
        deadline=None,
        database=None,
        derandomize=True,  # a red run is the last commit's
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(values=value_sets())
    def render_one(values: dict[str, Any]) -> None:
        text, refusal = _try(helm, values)
        assert not refusal or any(words in refusal for words in DISAGREEMENTS), refusal
        assume(not refusal)
        name = f"{len(rendered):03d}.yaml"
        (tmp_path / name).write_text(text)
        rendered[name] = values

    render_one()
    assert len(rendered) >= NUM_SETS
    _accepted(cluster, kubeconform, tmp_path, rendered)


def test_the_value_sets_are_what_the_server_allows(cluster: Cluster, helm: Path, kubeconform: Path, tmp_path: Path) -> None:
    for path in VALUE_SETS:
        (tmp_path / f"{path.stem}.yaml").write_text(template(helm, {}, files=[path]))
    _accepted(cluster, kubeconform, tmp_path, {})


def test_the_plain_manifests_are_what_the_server_allows(cluster: Cluster, kubeconform: Path, tmp_path: Path) -> None:
    for number, path in enumerate((CHART.parents[1] / "k8s").rglob("kustomization.yaml")):
        command = [cluster.kubectl_program, "kustomize", path.parent]
        built = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        (tmp_path / f"{number}.yaml").write_text(built)
    _accepted(cluster, kubeconform, tmp_path, {})


def test_kubeconform_would_notice_a_misspelt_field(cluster: Cluster, helm: Path, kubeconform: Path, tmp_path: Path) -> None:
    text = template(helm, LEAST).replace("enableInTreeAutoscaling", "enableInTreeAutoscalling")
    (tmp_path / "misspelt.yaml").write_text(text)
    problems = _problems(cluster, kubeconform, tmp_path)
    assert [problem["kind"] for problem in problems] == ["RayService"]
    assert "enableInTreeAutoscalling" in problems[0]["msg"]


def _try(helm: Path, values: dict[str, Any]) -> tuple[str, str]:
    try:
        return template(helm, values), ""
    except Refused as refused:
        return "", str(refused)


def _accepted(cluster: Cluster, kubeconform: Path, folder: Path, values: dict[str, dict[str, Any]]) -> None:
    problems = _problems(cluster, kubeconform, folder)
    culprits = {Path(problem["filename"]).name for problem in problems}
    assert problems == [], [values.get(name) for name in sorted(culprits)[:1]]


def _problems(cluster: Cluster, kubeconform: Path, folder: Path) -> list[dict[str, Any]]:
    """Validates every file of the folder in one run and returns what is not valid."""
    wanted = {kind for path in folder.glob("*.yaml") for kind in kinds(parse(path.read_text()))}
    schemas = folder / "schemas"
    schemas.mkdir()
    write_schemas(cluster, schemas, wanted)
    command = [kubeconform, "-output", "json", "-schema-location", f"{schemas}/{LOCATION}", *folder.glob("*.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout)["resources"]
    return found
