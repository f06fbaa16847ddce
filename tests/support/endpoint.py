"""The endpoint on a real socket, without Ray: uvicorn in a thread, as strict with HTTP as it is in production."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from processes import free_port


class Mishaps(logging.Handler):
    """Keeps what a server logs as an error, such as a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(logging.Formatter().format(record))


@contextmanager
def listening(app: Any) -> Iterator[tuple[int, Mishaps]]:
    """Runs an application on a free loopback port; yields the port and the errors that the server logs."""
    config = uvicorn.Config(app, port=free_port(), http="httptools", ws="none", access_log=False, log_config=None)
    server, mishaps = uvicorn.Server(config), Mishaps()
    logging.getLogger("uvicorn.error").addHandler(mishaps)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), mishaps.messages
            time.sleep(0.02)
        yield config.port, mishaps
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        logging.getLogger("uvicorn.error").removeHandler(mishaps)
    assert not thread.is_alive()
