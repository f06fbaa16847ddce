"""The audit log: one JSON line per request, of who asked and what was answered; never an image, a file name or an address.

Lines are made and written by a thread of their own, so that a slow disk holds up no answer. Each replica appends to files that
carry its host and process number, so that several can share a folder; a file that is full is left, and never written to again.
"""

import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from historay.errors import ConfigError
from historay.log import log_event
from historay.serving.schema import ImagePrediction, Result

_MAX_WAITING = 10_000  # lines; some seconds of the fastest endpoint
_STREAMS = {"stderr", "stdout"}
_FILE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Entry:
    """What is kept of one request."""

    time_s: float
    """When it arrived, seconds since 1970."""
    request_id: str
    key_id: str | None
    """Whose key it came with; None without one."""
    route: str
    """The route and not the path: what a client writes there may name a person."""
    status: int
    seconds: float
    """From the request's head to its answer."""
    reason: str | None = None
    """Short code of what was wrong with the request."""
    model: str | None = None
    """The model's name@version."""
    results: tuple[Result, ...] = ()


class AuditLog:
    """Writes entries to ``stderr``, ``stdout`` or files in a folder, in order, from its own thread."""

    def __init__(self, target: str, lost: Callable[[int], None], file_bytes: int = _FILE_BYTES) -> None:
        self._write: Callable[[str], None] = _stream(target) if target in _STREAMS else _Files(target, file_bytes)
        self._lost = lost
        self._entries: queue.Queue[Entry | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def add(self, entry: Entry) -> None:
        """Hands an entry to the thread, at once: where it falls too far behind, the line is lost and counted."""
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._lost(1)

    def close(self) -> None:
        """Writes what waits, and ends the thread."""
        try:
            self._entries.put(None, timeout=5)
        except queue.Full:
            return  # the disk hangs: the thread ends with the process
        self._thread.join(timeout=5)

    def _run(self) -> None:
        was_failing = False
        while (entry := self._entries.get()) is not None:
            try:
                self._write(line(entry))
            except (OSError, ValueError) as error:  # the disk is full, or the stream closed: answers go on
                self._lost(1)
                if not was_failing:
                    log_event("audit log cannot be written", error=type(error).__name__)
                was_failing = True
            else:
                was_failing = False


def located(target: str) -> str:
    """Returns a target that means the same in another process: a folder becomes absolute."""
    return target if target in _STREAMS else str(Path(target).absolute())


def line(entry: Entry) -> str:
    """Returns an entry as one line of JSON."""
    kept: dict[str, Any] = {
        "time": datetime.fromtimestamp(entry.time_s, UTC).isoformat(timespec="milliseconds"),
        "request_id": entry.request_id,
        "key_id": entry.key_id,
        "route": entry.route,
        "status": entry.status,
        "ms": round(1000 * entry.seconds, 3),
    }
    if entry.reason is not None:
        kept["reason"] = entry.reason
    if entry.model is not None:
        kept["model"] = entry.model
    if entry.results:
        kept["images"] = [_image(result) for result in entry.results]
    return json.dumps(kept) + "\n"


def _image(result: Result) -> dict[str, Any]:
    if not isinstance(result, ImagePrediction):
        return {"index": result.index, "refused": result.error.reason}
    return {
        "index": result.index,
        "sha256": result.sha256,
        "label": result.label,
        "probabilities": result.probabilities,
        "prediction_set": result.prediction_set,
        "abstain": result.abstain,
        "input": None if result.input is None else [reason.code for reason in result.input.reasons],
    }


def _stream(name: str) -> Callable[[str], None]:
    def write(text: str) -> None:
        # The process's own: Ray Serve puts a logger in place of sys.stderr, which walks the whole stack for each line.
        stream: TextIO = sys.__stderr__ if name == "stderr" else sys.__stdout__  # type: ignore[assignment]
        stream.write(text)
        stream.flush()

    return write


class _Files:
    """Appends to one file after the other in a folder; only the thread of one log calls it."""

    def __init__(self, folder: str, file_bytes: int) -> None:
        self._folder, self._file_bytes, self._number = Path(folder), file_bytes, 0
        self._rest = b""  # of a line, where the disk took only its beginning
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._opened()
        except OSError as error:
            raise ConfigError(f"audit_log={folder}: {error.strerror}; name a folder that can be written, or stderr") from None

    def __call__(self, text: str) -> None:
        data = self._rest + text.encode()
        size = os.fstat(self._descriptor).st_size
        if size and not self._rest and size + len(data) > self._file_bytes:
            self._number += 1
            full, self._descriptor = self._descriptor, self._opened()  # where that fails, the full one stays ours
            os.close(full)
        # One call, at the file's end: no line is ever torn by another writer.
        self._rest = data[os.write(self._descriptor, data) :]

    def _opened(self) -> int:
        """Opens a new file: a process number may come back, the time with it does not."""
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        name = f"audit-{started}-{socket.gethostname()}-{os.getpid()}-{self._number:04d}.jsonl"
        return os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
