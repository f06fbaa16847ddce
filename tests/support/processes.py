"""Runs the command line as a user would, and finds and kills processes as a failing machine would."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = Path(sys.executable).with_name("historay")


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "COLUMNS": "200"}


def historay(*arguments: str, home: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *arguments], env=environment(home), cwd=cwd, capture_output=True, text=True, timeout=400, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def processes_of(home: Path, word: str = "") -> list[int]:
    """Process numbers whose HOME is this one and whose command line has the word."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            of_home = f"HOME={home}\0".encode() in (entry / "environ").read_bytes()
            if of_home and word.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended while we looked
    return found


def kill_all(home: Path) -> None:
    for number in processes_of(home):
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(happened: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
