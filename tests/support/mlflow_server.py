"""A real MLflow server, in an environment of its own, on loopback."""

import hashlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import free_port, wait_until

_LOCK = Path(__file__).parents[1] / "tools" / "mlflow-server.txt"


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Starts a server over SQLite and a folder, and yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(_installed()), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MLFLOW_TRACKING_URI"}}
    clean["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a start in half the time
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=clean, start_new_session=True)
        try:
            wait_until(lambda: _answers(url, server), 400, "the MLflow server's first answer")
            yield url
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=30)


def _answers(url: str, server: "subprocess.Popen[bytes]") -> bool:
    assert server.poll() is None, f"{server.args!r} ended with status {server.returncode}"
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _installed() -> Path:
    """Installs the pinned server once per lock, outside the checkout: it cannot share Historay's environment."""
    pin = hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "/var/tmp")) / "historay-tools"
    folder = cache / f"mlflow-{pin}"
    program = folder / "bin" / "mlflow"
    if (folder / ".ready").exists():
        return program
    uv = Path(sys.executable).with_name("uv")
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True, timeout=120)
    install = [uv, "pip", "install", "-q", "--python", folder / "bin" / "python", "--require-hashes", "--no-deps", "-r", _LOCK]
    done = subprocess.run(install, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.skip(f"the MLflow server could not be installed: {done.stderr.strip().splitlines()[-1]}")
    (folder / ".ready").touch()
    return program
