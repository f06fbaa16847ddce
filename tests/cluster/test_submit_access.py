"""Who may submit, from where, and what an unknown user, a missing role and a server that is away are told."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from apiserver import Cluster
from kuberay import Operator
from processes import COMMAND

from historay.cluster.kube import KubernetesJobs
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage
from historay.errors import ClusterError, ConfigError, Unreachable
from historay.serving.predict_settings import PredictConfig
from historay.training.settings import TrainConfig

SETTINGS = {"run": "demo", "dataset": "demo", "store": "s3://bucket/store"}
TRAIN = Stage("train", TrainConfig.from_mapping(SETTINGS, "train.yaml"))
PREDICT = PredictConfig(images=("s3://bucket/tiles",), model="demo", store="s3://bucket/store")
CLUSTER = SubmitConfig(image="registry/historay:1")
ROLE = Path(__file__).parents[2] / "k8s" / "base" / "role-submitter.yaml"


def _grant(cluster: Cluster, namespace: str, *, without: str = "") -> str:
    """Gives the namespace's default account the role of k8s/base, less a verb on ConfigMaps, and returns a token of it."""
    role = yaml.safe_load(ROLE.read_text())
    role["metadata"] = {"name": "submitter"}
    if without:
        (rule,) = (rule for rule in role["rules"] if rule["resources"] == ["configmaps"])
        rule["verbs"].remove(without)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(role))
    account = f"--serviceaccount={namespace}:default"
    cluster.kubectl("create", "rolebinding", "submitter", "--role=submitter", account, "-n", namespace)
    return cluster.kubectl("create", "token", "default", "-n", namespace).strip()


def _context(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    """A kubeconfig with another token or server than the test cluster's."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = changed.get("token", config["users"][0]["user"]["token"])
    config["clusters"][0]["cluster"]["server"] = changed.get("server", config["clusters"][0]["cluster"]["server"])
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))


def test_a_job_runs_all_the_same_where_its_settings_cannot_be_made_its_own(
    cluster: Cluster,
    operator: Operator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    token = _grant(cluster, operator.namespace, without="patch")
    _context(cluster, tmp_path, monkeypatch, token=token)
    with caplog.at_level("INFO", "historay"):
        KubernetesJobs(operator.namespace, None).submit(TRAIN, CLUSTER, "train-demo-1")
    assert len(operator.rayjobs()) == 1
    assert 'cannot patch resource "configmaps"' in caplog.text


def test_an_unknown_user_a_missing_role_and_a_missing_namespace_are_told_apart(
    cluster: Cluster, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _context(cluster, tmp_path, monkeypatch, token="unknown")
    with pytest.raises(ClusterError, match="does not know you"):
        KubernetesJobs(operator.namespace, None).views()
    token = cluster.kubectl("create", "token", "default", "-n", operator.namespace).strip()
    _context(cluster, tmp_path, monkeypatch, token=token)
    with pytest.raises(ClusterError, match=r'cannot list resource "rayjobs".*Ask for the role'):
        KubernetesJobs(operator.namespace, None).submit(TRAIN, CLUSTER, "train-demo-1")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    with pytest.raises(ClusterError, match="has no such namespace; create it or correct --namespace"):
        KubernetesJobs("nowhere", None).submit(TRAIN, CLUSTER, "train-demo-1")


def test_a_server_that_is_away_is_told_from_one_that_refuses(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _context(cluster, tmp_path, monkeypatch, server="https://127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"the API server of context tests does not answer .*refused"):
        KubernetesJobs("default", None).views()


def test_a_server_without_kuberay_is_told_from_a_missing_job(
    jobs: KubernetesJobs, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match="has no job nobody; historay jobs list --namespace"):
        jobs.view("nobody")
    monkeypatch.setattr("historay.cluster.kube.GROUP", "ray.absent")  # as where the definitions are not installed
    with pytest.raises(ClusterError, match="knows no RayJob; install the KubeRay operator"):
        jobs.submit(Stage("predict", PREDICT), CLUSTER, "predict-1")
    assert operator.rayjobs() == []


def test_without_kubeconfig_and_outside_a_pod_both_ways_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"kubeconfig .*/absent"):
        KubernetesJobs(None, None)


IN_A_POD = """
set -e
mkdir -p /var/run/secrets && mount -t tmpfs tmpfs /var/run/secrets
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount && cp {folder}/* /var/run/secrets/kubernetes.io/serviceaccount/
exec {command} submit train {config} --detach
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lay a service account's files where a pod has them")
def test_in_a_pod_its_service_account_with_the_role_of_k8s_base_is_enough(
    cluster: Cluster, operator: Operator, tmp_path: Path
) -> None:
    token = _grant(cluster, operator.namespace)
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text(token)
    (folder / "namespace").write_text(operator.namespace)
    config = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
    (folder / "ca.crt").write_bytes(Path(config["certificate-authority"]).read_bytes())
    host, port = config["server"].removeprefix("https://").split(":")
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    environment |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port, "HOME": str(tmp_path)}
    config_file = tmp_path / "train.yaml"
    config_file.write_text(yaml.safe_dump(SETTINGS))
    script = IN_A_POD.format(folder=folder, command=COMMAND, config=config_file)
    command = ["unshare", "--mount", "/bin/sh", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert f"submitted to namespace {operator.namespace} of this pod's cluster" in done.stderr
    assert len(operator.rayjobs()) == 1
