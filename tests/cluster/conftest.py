"""A real Kubernetes API server for tests: etcd, kube-apiserver with RBAC, its controllers, and the CRDs of KubeRay.

Ask for a fixture; a test that uses one gets the marker ``cluster`` by itself:

- ``cluster`` (session): ``cluster.kubeconfig`` is a path, ``cluster.kubectl("get", "pods")`` runs kubectl as administrator,
  ``cluster.get("rayjobs.ray.io", "-n", namespace)`` gives parsed JSON.
- ``kubeconfig`` (session): the path alone, for a client: ``kubernetes.config.load_kube_config(str(kubeconfig))``.
- ``namespace``: the name of a fresh namespace, deleted after the test.
- ``helm``, ``kubeconform`` (session): paths of the programs; ``kuberay_crds``: the folder of KubeRay's definitions.

There are no nodes and no operator: pods stay pending, and a RayJob's status is what the test writes with
``kubectl patch --subresource=status``. The programs are built once by Go from tests/cluster/tools (9 minutes of CPU; 13
minutes of a busy machine with two cores) and kept in $XDG_CACHE_HOME or /var/tmp. Without Go, or without
../shared/data/kuberay-crds, the tests skip and say so.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver import Cluster, Programs, load_definitions, running_cluster
from gotools import go_module_folder, go_program
from kuberay import Operator

from historay.cluster.kube import KubernetesJobs

HERE = Path(__file__).parent
KUBERNETES = "v1.34.4"
# What the release's own build sets; without it the programs call themselves v0.0.0, and charts ask for a version.
_VERSIONED = (
    f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES} -X k8s.io/component-base/version.gitMajor=1"
    " -X k8s.io/component-base/version.gitMinor=34 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1"
    " -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1"
    " -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=34 -X helm.sh/helm/v3/internal/version.version=v3.19.5"
)
_OTHER_CRDS = {
    "github.com/prometheus-operator/prometheus-operator": (
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
    ),
    "sigs.k8s.io/gateway-api": ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"helm", "kubeconform", "cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def helm() -> Path:
    return _tool("helm.sh/helm/v3/cmd/helm")


@pytest.fixture(scope="session")
def kubeconform() -> Path:
    return _tool("github.com/yannh/kubeconform/cmd/kubeconform")


@pytest.fixture(scope="session")
def kuberay_crds(shared_data: Path) -> Path:
    folder = shared_data / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip(f"KubeRay's definitions are not on this machine: {folder} is missing")
    return folder


@pytest.fixture(scope="session")
def crd_files(kuberay_crds: Path) -> list[Path]:
    """Every definition that the chart and the manifests use: KubeRay's, Prometheus' and the Gateway API's."""
    others = [go_module_folder(HERE / "crds", module) / name for module, names in _OTHER_CRDS.items() for name in names]
    return [*sorted(kuberay_crds.glob("ray.io_*.yaml")), *others]


@pytest.fixture(scope="session")
def cluster(crd_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    programs = Programs(
        etcd=_tool("go.etcd.io/etcd/server/v3"),
        kube_apiserver=_tool("k8s.io/kubernetes/cmd/kube-apiserver"),
        kube_controller_manager=_tool("k8s.io/kubernetes/cmd/kube-controller-manager"),
        kubectl=_tool("k8s.io/kubernetes/cmd/kubectl"),
    )
    with running_cluster(programs, tmp_path_factory.mktemp("cluster")) as running:
        load_definitions(running, crd_files)
        yield running


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> Path:
    return cluster.kubeconfig


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def operator(cluster: Cluster, namespace: str) -> Operator:
    return Operator(str(cluster.kubeconfig), namespace)


@pytest.fixture
def jobs(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> KubernetesJobs:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return KubernetesJobs(namespace, None)


def _tool(package: str) -> Path:
    return go_program(HERE / "tools", package, _VERSIONED)
