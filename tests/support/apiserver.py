"""A real Kubernetes control plane without nodes: etcd, kube-apiserver with RBAC, kube-controller-manager, on loopback."""

import contextlib
import json
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from processes import free_port, wait_for_port, wait_until

ADMIN_TOKEN = "tests-only-admin"
_READY_TIMEOUT_S = 180
# What applying a release touches; nothing here runs a node, so the other controllers would only burn CPU.
_CONTROLLERS = (
    "namespace-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,garbage-collector-controller,"
    "resourcequota-controller,clusterrole-aggregation-controller,job-controller,cronjob-controller,disruption-controller"
)


@dataclass(frozen=True)
class Cluster:
    """The running control plane."""

    kubeconfig: Path
    url: str
    authority: Path  # the server's own certificate
    kubectl_program: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Runs kubectl as cluster administrator and returns what it printed (stderr too, unless ``check``)."""
        command = [str(self.kubectl_program), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def get(self, *arguments: str) -> Any:
        """Returns the parsed JSON of ``kubectl get``."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Posts an object that the server only answers, such as a review of rights, without a process for it."""
        return json.loads(self.ask(path, json.dumps(body).encode()))

    def read(self, path: str) -> Any:
        """Returns the parsed JSON at a path of the API."""
        return json.loads(self.ask(path))

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Returns what the API answers at a path, to a GET or to the POST of a body."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
        trusted = ssl.create_default_context(cafile=str(self.authority))
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}{path}", body, headers), context=trusted, timeout=10
        ) as answer:
            return bytes(answer.read())


@dataclass(frozen=True)
class Programs:
    """Paths of the built programs."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kubectl: Path


@contextlib.contextmanager
def running_cluster(programs: Programs, folder: Path) -> Iterator[Cluster]:
    """Starts the control plane with all its files in ``folder``, yields it, and ends each of its processes."""
    etcd, port = f"http://127.0.0.1:{free_port()}", free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_running(_etcd_command(programs.etcd, folder, etcd), folder))
        server = stack.enter_context(_running(_apiserver_command(programs.kube_apiserver, folder, etcd, port), folder))
        wait_for_port(port, server)
        authority = folder / "certificates" / "apiserver.crt"
        cluster = Cluster(_write_kubeconfig(folder, port), f"https://127.0.0.1:{port}", authority, programs.kubectl)
        _wait_until_ready(cluster)
        stack.enter_context(_running(_controllers_command(programs.kube_controller_manager, folder, cluster), folder))
        yield cluster


def load_definitions(cluster: Cluster, files: Sequence[Path]) -> None:
    """Creates the custom resource definitions and waits until the server offers them."""
    # Server-side: KubeRay's exceed what client-side apply can put into an annotation.
    command = ["apply", "--server-side", *(f"--filename={file}" for file in files)]

    def applied() -> bool:  # on a busy machine the server's own limit of 34 s passes; what is done stays done
        return cluster.kubectl(*command, check=False).count("serverside-applied") == len(files)

    wait_until(applied, _READY_TIMEOUT_S, "creation of the definitions")
    # Not `kubectl wait`: it fails on a definition that has no conditions yet.
    wait_until(lambda: all(map(_established, cluster.get("crd")["items"])), _READY_TIMEOUT_S, "definitions offered")


def _established(definition: Any) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def _etcd_command(program: Path, folder: Path, url: str) -> list[str]:
    peer = f"http://127.0.0.1:{free_port()}"
    return [
        str(program),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # the data are thrown away
        "--log-level=error",
    ]


def _apiserver_command(program: Path, folder: Path, etcd: str, port: int) -> list[str]:
    key, tokens = folder / "service-accounts.key", folder / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens.write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
    return [
        str(program),
        f"--etcd-servers={etcd}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",  # it refuses to publish a loopback address
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certificates'}",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={key}",
        f"--service-account-key-file={key}",
    ]


def _controllers_command(program: Path, folder: Path, cluster: Cluster) -> list[str]:
    return [
        str(program),
        f"--kubeconfig={cluster.kubeconfig}",
        f"--service-account-private-key-file={folder / 'service-accounts.key'}",
        f"--root-ca-file={folder / 'certificates' / 'apiserver.crt'}",
        f"--controllers={_CONTROLLERS}",
        # By default five minutes pass until a quota counts a kind that is newer than the controller.
        "--resource-quota-sync-period=10s",
        "--leader-elect=false",
        "--secure-port=0",
    ]


@contextlib.contextmanager
def _running(command: list[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write_kubeconfig(folder: Path, port: int) -> Path:
    """The server signs its own certificate, so that is the authority too."""
    authority = str(folder / "certificates" / "apiserver.crt")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": authority}}],
        "users": [{"name": "admin", "user": {"token": ADMIN_TOKEN}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin", "namespace": "default"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def _wait_until_ready(cluster: Cluster) -> None:
    def ready() -> bool:
        try:
            return cluster.ask("/readyz") == b"ok"
        except OSError:
            return False

    wait_until(ready, _READY_TIMEOUT_S, "readiness of the API server")
