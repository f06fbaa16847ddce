"""A server between client and server that loses one answer: the request has its effect, and the client never hears of it."""

import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def losing_one_answer(upstream_port: int, method: bytes) -> Iterator[int]:
    """Passes everything on to a loopback port, but the first success that answers ``method``; yields its own port."""
    lost = threading.Event()

    class Between(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", upstream_port)) as server:
                other: dict[Any, socket.socket] = {self.request: server, server: self.request}
                concerned = False
                while True:
                    for sender in select.select(list(other), [], [])[0]:
                        data = sender.recv(65536)
                        concerned |= data.startswith(method)
                        if concerned and data.startswith(b"HTTP/1.1 200") and not lost.is_set():
                            lost.set()
                            return
                        if not data:
                            return
                        other[sender].sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Between) as between:
        between.daemon_threads = True
        threading.Thread(target=between.serve_forever, daemon=True).start()
        try:
            yield between.server_address[1]
        finally:
            between.shutdown()
    assert lost.is_set(), "there was no such answer to lose"
