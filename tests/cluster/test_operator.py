"""With a real KubeRay operator: KUBERAY_OPERATOR=/path/to/manager names its program; without it these tests skip.

It runs beside the test's API server and makes pods, Services and Secrets as in a cluster; there are no nodes, so pods stay
pending. What is checked is what the chart and the manifests promise of those objects. KubeRay before 1.6 knows no token:
there one test fails.
"""

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import Cluster
from chart import CHART
from netpol import Pod, may_connect
from processes import free_port, wait_until

JOBS = CHART.parents[1] / "k8s" / "jobs"
RELEASE = "demo-historay"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    program = os.environ.get("KUBERAY_OPERATOR")
    if not program:
        pytest.skip("KUBERAY_OPERATOR names no operator's program")
    folder = tmp_path_factory.mktemp("operator")
    command = [program, f"--metrics-addr=127.0.0.1:{free_port()}", f"--health-probe-bind-address=127.0.0.1:{free_port()}"]
    command += ["--enable-leader-election=false"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}, stdout=log, stderr=log)
    yield
    assert process.poll() is None, (folder / "log").read_text()[-2000:]
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture
def release(operator: None, cluster: Cluster, helm: Path, namespace: str) -> str:
    """The chart in a namespace of the level restricted, with its head and first worker made by the operator."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    values = CHART / "ci" / "cpu-values.yaml"
    command = [helm, "--kubeconfig", cluster.kubeconfig, "-n", namespace, "install", "demo", CHART, "-f", values]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    _eventually(lambda: len(_pods(cluster, namespace, "ray.io/is-ray-node=yes")) == 3, "a head and two workers")
    return namespace


def test_a_rayservice_becomes_a_head_and_its_least_number_of_workers(cluster: Cluster, release: str) -> None:
    (head,) = _pods(cluster, release, "ray.io/node-type=head")
    assert [container["name"] for container in head["spec"]["containers"]] == ["ray-head", "autoscaler"]
    assert head["spec"]["serviceAccountName"] == f"{RELEASE}-head"
    started = json.dumps(head["spec"]["containers"][0])
    assert "--num-cpus=0" in started
    assert "--node-manager-port=6380" in started
    assert len(_pods(cluster, release, "ray.io/node-type=worker")) == 2


def test_every_ray_container_gets_the_token(cluster: Cluster, release: str) -> None:
    for pod in _pods(cluster, release, "ray.io/is-ray-node=yes"):
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            assert "RAY_AUTH_TOKEN" in {entry["name"] for entry in container["env"]}, container["name"]


def test_the_head_service_selects_the_head(cluster: Cluster, release: str) -> None:
    (head,) = _pods(cluster, release, "ray.io/node-type=head")
    _eventually(lambda: bool(_services(cluster, release, "ray.io/node-type=head")), "the head's Service")
    for service in _services(cluster, release, "ray.io/node-type=head"):
        assert service["spec"]["selector"].items() <= head["metadata"]["labels"].items()


def test_the_policies_hold_for_the_pods_that_the_operator_made(cluster: Cluster, release: str) -> None:
    policies = cluster.get("networkpolicies", "-n", release)["items"]
    (head,), workers = (_pods(cluster, release, f"ray.io/node-type={kind}") for kind in ("head", "worker"))
    ends = [Pod(release, pod["metadata"]["labels"]) for pod in (head, *workers)]
    for source, destination in itertools.permutations(ends, 2):
        assert may_connect(policies, source, destination, 10002)
    assert not may_connect(policies, Pod(release, {"app": "neighbour"}), ends[0], 8265)


def test_the_account_of_the_autoscaler_is_bound_to_the_operators_role_with_the_rules_of_ours(
    cluster: Cluster, release: str
) -> None:
    ours = cluster.get("role", f"{RELEASE}-autoscaler", "-n", release)["rules"]
    (theirs,) = cluster.get("roles", "-n", release, "-l", "app.kubernetes.io/created-by=kuberay-operator")["items"]

    def flat(rules: list[Object]) -> set[tuple[str, str]]:
        return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}

    assert flat(theirs["rules"]) == flat(ours)


@pytest.mark.parametrize("stage", ["ingest", "train", "search", "evaluate", "predict"])
def test_a_rayjob_becomes_a_cluster_that_restricted_pod_security_admits(
    operator: None, cluster: Cluster, namespace: str, stage: str
) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    cluster.kubectl("create", "serviceaccount", "historay-jobs", "-n", namespace)
    manifest = (JOBS / f"{stage}.yaml").read_text().replace("namespace: historay", f"namespace: {namespace}")
    cluster.kubectl("apply", "-f", "-", stdin=manifest)
    wanted = 1 + 2 if stage != "evaluate" else 1 + 1
    _eventually(lambda: len(_pods(cluster, namespace, "ray.io/is-ray-node=yes")) == wanted, f"{wanted} pods of {stage}")
    assert cluster.get("rayjob", stage, "-n", namespace)["status"]["jobDeploymentStatus"] == "Initializing"


def _pods(cluster: Cluster, namespace: str, selector: str) -> list[Object]:
    found: list[Object] = cluster.get("pods", "-n", namespace, "-l", selector)["items"]
    return found


def _services(cluster: Cluster, namespace: str, selector: str) -> list[Object]:
    found: list[Object] = cluster.get("services", "-n", namespace, "-l", selector)["items"]
    return found


def _eventually(happened: Callable[[], bool], what: str) -> None:
    wait_until(happened, 240, what)
