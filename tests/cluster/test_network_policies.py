"""Who may talk to whom: the chart's policies and those of k8s/base, applied to the server, read back, and evaluated."""

import subprocess
from pathlib import Path

import pytest
import yaml
from apiserver import Cluster
from chart import CHART, VALUE_SETS, only, parse, pod_templates, ray_cluster, render, template
from netpol import Pod, Policy, may_connect

BASE = CHART.parents[1] / "k8s" / "base"
VALUES = {
    "redis": {"enabled": True, "address": "redis.databases:6379"},
    "networkPolicy": {
        "clients": [{"namespaceLabels": {"kubernetes.io/metadata.name": "ingress"}}, {"cidr": "198.51.100.128/25"}],
        "s3": {"cidr": "192.0.2.0/24", "ports": [9000]},
    },
    "cronJobs": [{"name": "nightly", "schedule": "0 3 * * *", "args": ["predict"]}],
}
RAY = {"app.kubernetes.io/instance": "demo", "app.kubernetes.io/part-of": "demo-historay", "ray.io/is-ray-node": "yes"}
RELEASED = {key: RAY[key] for key in ("app.kubernetes.io/instance", "app.kubernetes.io/part-of")}
CLIENT = {"demo-historay-client": "true"}
TESTER = RELEASED | CLIENT | {"app.kubernetes.io/name": "historay", "app.kubernetes.io/component": "test"}
PODS = {
    "head": Pod("team", RAY | {"ray.io/node-type": "head"}),
    "worker": Pod("team", RAY | {"ray.io/node-type": "worker"}),
    "redis cleanup": Pod("team", RAY | {"ray.io/node-type": "redis-cleanup"}),
    "other release's worker": Pod("team", RAY | {"app.kubernetes.io/part-of": "other-historay", "ray.io/node-type": "worker"}),
    "client": Pod("team", CLIENT),
    "client of another namespace": Pod("elsewhere", CLIENT),
    "neighbour": Pod("team", {"app": "something"}),
    "cron": Pod(
        "team",
        {
            "app.kubernetes.io/instance": "demo",
            "app.kubernetes.io/component": "cron-nightly",
            "demo-historay-client": "true",
        },
    ),
    "helm test": Pod("team", TESTER),
    "ingress controller": Pod("ingress", {"app": "nginx"}),
    "operator": Pod("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
    "operator's neighbour": Pod("kuberay-system", {"app": "something"}),
    "prometheus": Pod("monitoring", {"app": "prometheus"}),
    "dns": Pod("kube-system", {"k8s-app": "kube-dns"}),
    "redis": Pod("databases", {"app": "redis"}),
    "store": Pod(address="192.0.2.10"),
    "API server": Pod(address="198.51.100.1"),
    "internet": Pod(address="203.0.113.7"),
    "hospital": Pod(address="198.51.100.200"),
}
# From, to, ports, whether.
TABLE = [
    ("worker", "head", (6379, 6380, 6381, 6382, 6383, 8265, 52365, 10002, 19999), True),
    ("head", "worker", (6380, 6381, 52365, 10002, 15000, 19999, 8500, 30000, 31000), True),
    ("worker", "worker", (6381, 12345, 30500), True),
    ("worker", "head", (8500, 30000, 31000), True),  # its HAProxy to the proxy that steps in, and to any replica
    ("worker", "head", (10001, 8404, 9101, 22), False),  # Ray client, HAProxy's statistics and metrics: nobody's
    ("worker", "worker", (8404, 9101), False),
    ("operator", "head", (8500, 30000, 9101, 8404), False),
    ("worker", "worker", (20000, 29999, 31001), False),
    ("other release's worker", "worker", (6381, 12345, 8000), False),
    ("other release's worker", "head", (6379, 8265), False),
    ("client", "worker", (8000,), True),
    ("client", "worker", (8080, 52365, 10002), False),
    ("client", "worker", (30000, 31000, 9101, 8404), False),  # past HAProxy, and what it tells of itself
    ("client", "head", (8500, 9101, 8404), False),
    ("other release's worker", "worker", (8500, 30000), False),
    ("ingress controller", "worker", (30000, 8500, 9101, 8404), False),
    ("client", "head", (8000, 8265, 6379, 10001), False),
    ("client of another namespace", "worker", (8000,), False),
    ("neighbour", "worker", (8000, 8080), False),
    ("neighbour", "head", (8265, 6379), False),
    ("ingress controller", "worker", (8000,), True),
    ("ingress controller", "head", (8265,), False),
    ("hospital", "worker", (8000,), True),
    ("hospital", "worker", (8080,), False),
    ("internet", "worker", (8000,), False),
    ("cron", "worker", (8000,), True),
    ("cron", "worker", (6379, 10002), False),
    ("cron", "store", (9000,), True),
    ("cron", "internet", (443,), False),
    ("helm test", "worker", (8000,), True),
    ("helm test", "worker", (6379, 10002), False),
    ("helm test", "store", (9000,), False),
    ("helm test", "dns", (53,), True),
    ("operator", "head", (8265, 8000), True),
    ("operator", "head", (6379, 10001), False),
    ("operator", "worker", (8000,), False),
    ("operator's neighbour", "head", (8265,), False),
    ("prometheus", "head", (8080, 44217, 44227), True),
    ("prometheus", "worker", (8080,), True),
    ("prometheus", "head", (8265,), False),
    ("prometheus", "worker", (8000, 9101, 8404), False),
    ("prometheus", "head", (9101, 8404), False),
    ("head", "dns", (53,), True),
    ("worker", "dns", (53,), True),
    ("worker", "store", (9000,), True),
    ("head", "store", (9000,), True),  # the application is built there
    ("worker", "store", (443, 22), False),
    ("worker", "internet", (443, 80), False),
    ("worker", "API server", (443, 6443), False),
    ("head", "API server", (443, 6443), True),
    ("head", "redis", (6379,), True),
    ("worker", "redis", (6379,), False),
    ("redis cleanup", "redis", (6379,), True),
    ("redis cleanup", "redis", (22,), False),
    ("redis cleanup", "head", (10002, 8265), False),
    ("redis cleanup", "store", (9000,), False),
    ("worker", "neighbour", (80,), False),
]


@pytest.fixture(scope="module")
def chart_policies(cluster: Cluster, helm: Path) -> list[Policy]:
    """As the server gives them back, with its defaults filled in."""
    cluster.kubectl("create", "namespace", "team")
    policies = [item for item in render(helm, VALUES) if item["kind"] == "NetworkPolicy"]
    cluster.kubectl("apply", "-n", "team", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(policies))
    found: list[Policy] = cluster.get("networkpolicies", "-n", "team")["items"]
    assert len(found) == len(policies) == 5
    return found


@pytest.mark.parametrize(("source", "destination", "ports", "allowed"), TABLE)
def test_the_endpoints_pods_talk_to_whom_they_must_and_to_nobody_else(
    chart_policies: list[Policy], source: str, destination: str, ports: tuple[int, ...], allowed: bool
) -> None:
    for port in ports:
        protocol = "UDP" if destination == "dns" else "TCP"
        assert may_connect(chart_policies, PODS[source], PODS[destination], port, protocol) is allowed, port


def test_the_pods_of_the_table_are_the_charts(helm: Path) -> None:
    for group, name in (("head", "head"), ("workers", "worker")):
        labels = pod_templates(ray_cluster(render(helm, VALUES)))[group]["metadata"]["labels"]
        assert labels.items() <= PODS[name].labels.items()


def test_helm_test_reaches_the_endpoint_in_a_namespace_that_lets_nobody_out(helm: Path) -> None:
    objects = render(helm, VALUES)
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    policies += [yaml.safe_load(path.read_text()) for path in BASE.glob("networkpolicy-*.yaml")]
    for policy in policies:
        policy["metadata"]["namespace"] = "team"
    labels = only(objects, "Pod", "-test")["metadata"]["labels"]
    assert TESTER.items() <= labels.items()
    assert may_connect(policies, Pod("team", labels), PODS["worker"], 8000)
    assert may_connect(policies, Pod("team", labels), PODS["dns"], 53, "UDP")
    assert not may_connect(policies, PODS["client"], PODS["worker"], 8000)  # it needs an egress of its own


def test_without_haproxy_its_ports_are_closed(helm: Path) -> None:
    policies = [item for item in render(helm, {"haProxy": False}) if item["kind"] == "NetworkPolicy"]
    for policy in policies:
        policy["metadata"]["namespace"] = "team"
    assert may_connect(policies, PODS["worker"], PODS["worker"], 12345)
    assert not may_connect(policies, PODS["worker"], PODS["worker"], 30000)
    assert not may_connect(policies, PODS["worker"], PODS["head"], 8500)


@pytest.mark.parametrize("values", VALUE_SETS, ids=lambda path: path.stem)
def test_every_value_set_lets_workers_reach_the_head_and_a_client_reach_workers(helm: Path, values: Path) -> None:
    policies = [item for item in parse(template(helm, {}, files=[values])) if item["kind"] == "NetworkPolicy"]
    for policy in policies:
        policy["metadata"]["namespace"] = "team"
    assert may_connect(policies, PODS["worker"], PODS["head"], 6379)
    assert may_connect(policies, PODS["client"], PODS["worker"], 8000)
    assert not may_connect(policies, PODS["neighbour"], PODS["worker"], 8000)


JOB = {"app.kubernetes.io/name": "historay", "app.kubernetes.io/component": "train"}


@pytest.mark.parametrize(
    ("source", "destination", "port", "allowed"),
    [
        (Pod("historay", JOB), Pod("historay", JOB), 29500, True),  # DDP's rendezvous
        (Pod("historay", JOB), Pod("historay", {"app": "x"}), 80, False),
        (Pod("historay", {"app": "x"}), Pod("historay", JOB), 8265, False),
        (Pod("historay", JOB), Pod("kube-system", {}), 53, True),
        (Pod("historay", JOB), Pod(address="203.0.113.7"), 443, True),
        (Pod("historay", JOB), Pod(address="203.0.113.7"), 80, False),
        (Pod("historay", {"app": "x"}), Pod(address="203.0.113.7"), 443, False),
        (Pod("kuberay-system", {}), Pod("historay", JOB), 8265, True),
        (Pod("kuberay-system", {}), Pod("historay", JOB), 6379, False),
        (Pod("elsewhere", JOB), Pod("historay", JOB), 6379, False),
    ],
)
def test_the_pods_of_jobs_talk_among_themselves_to_dns_and_to_the_store(
    source: Pod, destination: Pod, port: int, allowed: bool
) -> None:
    policies = [yaml.safe_load(path.read_text()) for path in BASE.glob("networkpolicy-*.yaml")]
    assert len(policies) == 4
    assert may_connect(policies, source, destination, port) is allowed


def test_on_kind_jobs_and_endpoint_use_the_trial_store_and_no_other(cluster: Cluster, helm: Path) -> None:
    overlay = subprocess.run(
        [cluster.kubectl_program, "kustomize", BASE.parent / "overlays" / "kind"], check=True, capture_output=True, text=True
    ).stdout
    chart = parse(template(helm, {}, files=[CHART / "ci" / "kind-values.yaml"], release="historay"))
    policies = [item for item in parse(overlay) + chart if item["kind"] == "NetworkPolicy"]
    for policy in policies:
        policy["metadata"]["namespace"] = "historay"
    store = Pod("historay", {"app.kubernetes.io/name": "s3"})
    labels = pod_templates(ray_cluster(chart))["workers"]["metadata"]["labels"]
    worker = Pod("historay", labels | {"ray.io/node-type": "worker", "ray.io/is-ray-node": "yes"})
    for pod in (Pod("historay", JOB), worker):
        assert may_connect(policies, pod, store, 7070)
        assert not may_connect(policies, pod, Pod(address="203.0.113.7"), 443)
