"""Every value set against the real server: installed, upgraded, rolled back, taken away; its rights; its pods admitted."""

import base64
import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import Cluster
from chart import CHART, VALUE_SETS, parse, template
from raypods import pods

NAMES = [path.stem for path in VALUE_SETS]
EVERYTHING = (
    "rayservices.ray.io,serviceaccounts,roles,rolebindings,secrets,networkpolicies,poddisruptionbudgets,configmaps,ingresses,"
    "cronjobs,servicemonitors.monitoring.coreos.com,podmonitors.monitoring.coreos.com,httproutes.gateway.networking.k8s.io"
)
Helm = Callable[..., str]


@pytest.fixture
def strict_namespace(cluster: Cluster, namespace: str) -> str:
    """A namespace that admits only pods of the level ``restricted``."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


@pytest.fixture
def run_helm(cluster: Cluster, helm: Path, strict_namespace: str) -> Helm:
    return partial(_run_helm, cluster, helm, strict_namespace)


@pytest.fixture(scope="module")
def release(cluster: Cluster, helm: Path) -> str:
    """The namespace of a release that the tests of rights share and leave as it is."""
    cluster.kubectl("create", "namespace", "rights")
    _run_helm(cluster, helm, "rights", "install", "demo", str(CHART), "-f", str(CHART / "ci" / "cpu-values.yaml"))
    return "rights"


def _run_helm(cluster: Cluster, helm: Path, namespace: str, *arguments: str) -> str:
    command = [helm, "--kubeconfig", cluster.kubeconfig, "--namespace", namespace, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _service(cluster: Cluster, namespace: str) -> dict[str, Any]:
    spec: dict[str, Any] = cluster.get("rayservice", "demo-historay", "-n", namespace)["spec"]
    return spec


def _image(service: dict[str, Any]) -> str:
    return str(service["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"])


def _left(cluster: Cluster, namespace: str) -> list[str]:
    items = cluster.get(EVERYTHING, "-n", namespace, "-l", "app.kubernetes.io/instance=demo")["items"]
    return [f"{item['kind']} {item['metadata']['name']}" for item in items]


@pytest.mark.parametrize("values", VALUE_SETS, ids=NAMES)
def test_a_release_is_installed_upgraded_rolled_back_and_leaves_nothing(
    cluster: Cluster, run_helm: Helm, strict_namespace: str, values: Path
) -> None:
    run_helm("install", "demo", str(CHART), "-f", str(values))
    first = _service(cluster, strict_namespace)
    run_helm("upgrade", "demo", str(CHART), "-f", str(values), "--set", "image.tag=2.0.0")
    assert _image(_service(cluster, strict_namespace)) == "historay:2.0.0"
    run_helm("rollback", "demo", "1")
    assert _service(cluster, strict_namespace) == first
    assert len(_left(cluster, strict_namespace)) >= 7
    run_helm("uninstall", "demo", "--wait")
    assert _left(cluster, strict_namespace) == []


def _rendered(helm: Path, values: Path, namespace: str) -> list[dict[str, Any]]:
    """The chart's objects as they can be applied there."""
    rendered = [{**item, "metadata": {**item["metadata"]}} for item in parse(template(helm, {}, files=[values]))]
    for item in rendered:
        item["metadata"].pop("namespace", None)
        for subject in item.get("subjects", []):
            subject["namespace"] = namespace
    return rendered


def _as_the_server_would_keep(cluster: Cluster, objects: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """The objects with the server's defaults, each field checked, none kept."""
    arguments = ["apply", "-n", namespace, "--server-side", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"]
    answer = json.loads(cluster.kubectl(*arguments, stdin=yaml.safe_dump_all(objects)))
    items: list[dict[str, Any]] = answer["items"]
    return items


@pytest.mark.parametrize("values", VALUE_SETS, ids=NAMES)
def test_the_server_knows_every_field_and_restricted_pod_security_admits_the_pods_that_kuberay_makes(
    cluster: Cluster, helm: Path, strict_namespace: str, values: Path
) -> None:
    rendered = _rendered(helm, values, strict_namespace)
    kept = _as_the_server_would_keep(cluster, rendered, strict_namespace)
    assert len(kept) == len(rendered)
    (service,) = (item for item in kept if item["kind"] == "RayService")
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    cluster.kubectl(
        *("apply", "-n", strict_namespace, "-f", "-"),
        stdin=yaml.safe_dump_all([item for item in rendered if item.items() >= account.items()]),
    )
    for pod in (*pods(service["spec"]["rayClusterConfig"]).values(), *_other_pods(rendered)):
        for name in ("priorityClassName", "runtimeClassName"):
            pod["spec"].pop(name, None)  # which an administrator makes
        said = _create(cluster, strict_namespace, pod)
        assert "created (server dry run)" in said, said


def test_a_drawn_key_is_kept_over_an_upgrade_and_a_given_one_replaces_it(
    cluster: Cluster, run_helm: Helm, strict_namespace: str
) -> None:
    def key() -> str:
        secret = cluster.get("secret", "demo-historay-api-key", "-n", strict_namespace)
        return base64.b64decode(secret["data"]["api-key"]).decode()

    values = str(CHART / "ci" / "cpu-values.yaml")
    run_helm("install", "demo", str(CHART), "-f", values)
    drawn = key()
    assert re.fullmatch(r"[A-Za-z0-9]{40}", drawn)
    run_helm("upgrade", "demo", str(CHART), "-f", values, "--set", "image.tag=2.0.0")
    assert key() == drawn
    run_helm("upgrade", "demo", str(CHART), "-f", values, "--set", "apiKey.value=given")
    assert key() == "given"


def test_the_notes_print_a_command_for_the_way_in_that_was_chosen(run_helm: Helm) -> None:
    for values, words in {
        "kind": "port-forward service/demo-historay-serve-svc",
        "cpu": "https://historay.example.org/v1/predict",
        "s3-static": ".status.loadBalancer.ingress[0]",
        "irsa": "http://historay.example.org/v1/predict",
        "ha": "get gateway demo-historay-gateway",
    }.items():
        said = run_helm("install", "demo", str(CHART), "-f", str(CHART / "ci" / f"{values}-values.yaml"), "--dry-run=server")
        assert words in said.split("NOTES:")[1]


def test_restricted_pod_security_would_notice(cluster: Cluster, run_helm: Helm, strict_namespace: str) -> None:
    run_helm("install", "demo", str(CHART), "-f", str(CHART / "ci" / "kind-values.yaml"))
    pod = pods(_service(cluster, strict_namespace)["rayClusterConfig"])["head"]
    del pod["spec"]["containers"][1]["securityContext"]  # the autoscaler's, which the template does not hold
    assert 'violates PodSecurity "restricted' in _create(cluster, strict_namespace, pod)


def _create(cluster: Cluster, namespace: str, pod: dict[str, Any]) -> str:
    arguments = ("create", "-n", namespace, "--dry-run=server", "--validate=strict", "-f", "-")
    return cluster.kubectl(*arguments, stdin=json.dumps(pod), check=False)


def _other_pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pod of `helm test` and those of jobs by the clock."""
    for item in objects:
        if item["kind"] == "Pod":
            yield {**item, "metadata": {"name": "test"}}
        if item["kind"] == "CronJob":
            job = item["spec"]["jobTemplate"]["spec"]["template"]
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cron"}, "spec": job["spec"]}


HEAD, WORKER = "demo-historay-head", "demo-historay"
MAY = {
    (HEAD, verb, resource)
    for resource, verbs in {
        "pods": ("get", "list", "watch", "patch"),
        "pods/resize": ("patch",),
        "rayclusters.ray.io": ("get", "patch"),
    }.items()
    for verb in verbs
}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    "pods",
    "pods/resize",
    "pods/exec",
    "pods/log",
    "secrets",
    "configmaps",
    "services",
    "serviceaccounts",
    "nodes",
    "rayclusters.ray.io",
    "rayservices.ray.io",
    "rayjobs.ray.io",
    "roles.rbac.authorization.k8s.io",
)


@pytest.mark.parametrize("account", [HEAD, WORKER])
def test_an_account_may_do_what_the_autoscaler_needs_and_no_more(cluster: Cluster, release: str, account: str) -> None:
    user = f"system:serviceaccount:{release}:{account}"
    for resource, verb in itertools.product(RESOURCES, VERBS):
        name, _, group = resource.partition(".")
        kind, _, part = name.partition("/")
        attributes = {"namespace": release, "verb": verb, "resource": kind, "group": group, "subresource": part}
        assert _allowed(cluster, user, attributes) is ((account, verb, resource) in MAY), (verb, resource)


def test_an_account_may_do_nothing_in_another_namespace(cluster: Cluster, release: str) -> None:
    user = f"system:serviceaccount:{release}:{HEAD}"
    for namespace in ("default", "kube-system", ""):
        assert not _allowed(cluster, user, {"namespace": namespace, "verb": "list", "resource": "pods"})


def _allowed(cluster: Cluster, user: str, attributes: dict[str, str]) -> bool:
    """`kubectl auth can-i`, without a process for each cell of the table."""
    review = {"spec": {"user": user, "resourceAttributes": attributes}}
    answer = cluster.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])
