"""A node's kubelet, as far as logs go: the API server asks it for them over HTTPS, and it streams what a test writes."""

import contextlib
import ssl
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from kubernetes import client


class Kubelet:
    """Logs by pod; ``write`` adds lines, ``end`` says that the container has ended, ``drop`` breaks open connections."""

    def __init__(self, node: str, port: int) -> None:
        self.node, self.port = node, port
        self._lines: dict[str, list[str]] = defaultdict(list)
        self._ended: set[str] = set()
        self._drops = 0
        self._changed = threading.Condition()

    def write(self, pod: str, *lines: str) -> None:
        with self._changed:
            self._lines[pod] += lines
            self._changed.notify_all()

    def end(self, pod: str) -> None:
        with self._changed:
            self._ended.add(pod)
            self._changed.notify_all()

    def drop(self) -> None:
        with self._changed:
            self._drops += 1
            self._changed.notify_all()

    def stream(self, pod: str, *, follow: bool) -> Iterator[str]:
        number, drops = 0, self._drops
        while True:
            with self._changed:
                while follow and number == len(self._lines[pod]) and pod not in self._ended and drops == self._drops:
                    self._changed.wait(timeout=60)
                lines = self._lines[pod][number:]
            yield from lines
            number += len(lines)
            if not follow or drops != self._drops or (pod in self._ended and number == len(self._lines[pod])):
                return


@contextlib.contextmanager
def running_kubelet(core: client.CoreV1Api, node: str, port: int, folder: Path) -> Iterator[Kubelet]:
    """Registers the node and serves the logs of its pods on loopback."""
    key, certificate = folder / "kubelet.key", folder / "kubelet.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2"]
    subprocess.run([*command, "-subj", f"/CN={node}"], check=True, capture_output=True)
    kubelet = Kubelet(node, port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            _, pod, _ = asked.path.removeprefix("/containerLogs/").split("/")
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # the asker has gone
                for line in kubelet.stream(pod, follow=parse_qs(asked.query).get("follow") == ["true"]):
                    self.wfile.write(f"{line}\n".encode())
                    self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    core.create_node({"metadata": {"name": node}, "status": status})
    try:
        yield kubelet
    finally:
        core.delete_node(node)
        server.shutdown()
        server.server_close()
