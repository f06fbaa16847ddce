"""Runs the command line as a user would, and finds and kills processes as a failing machine would."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

COMMAND = Path(sys.executable).with_name("historay")
# Root reads everything unless it gives up the capability to override permissions.
_POWERS = "-dac_override,-dac_read_search"
UNPRIVILEGED = ["setpriv", "--bounding-set", _POWERS, "--inh-caps", _POWERS]
if os.geteuid() or shutil.which("setpriv") is None:
    UNPRIVILEGED = []


def environment(home: Path) -> dict[str, str]:
    # Ray's workers otherwise give way to everything else on the machine, such as the other half of the tests.
    return {**os.environ, "HOME": str(home), "COLUMNS": "200", "RAY_worker_niceness": "0"}


def historay(*arguments: str, home: Path, cwd: Path, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *arguments], env=environment(home), cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
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


def actors_seen(state: str | None = None) -> list[str]:
    """The class of each actor, alive or dead, of the cluster that this process is connected to."""
    import ray._private.state  # GCS itself: ray.util.state asks the dashboard, which a busy machine may not have started

    return [actor["ActorClassName"] for actor in ray._private.state.actors(actor_state_name=state).values()]


def leftovers() -> list[str]:
    """What the cluster still holds: placement groups, and actors of trials, runs and their workers."""
    import ray

    groups = [name for name, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"]
    names = {"TrainController", "RayTrainWorker", "ImplicitFunc", "_QueueActor"}
    return groups + [actor for actor in actors_seen("ALIVE") if actor.rsplit(".", 1)[-1] in names]


def wait_for_an_empty_cluster(timeout_s: float = 300) -> None:
    """Waits until nothing of a search is left, and says what is if it stays."""
    with suppress(AssertionError):
        wait_until(lambda: not leftovers(), timeout_s, "an empty cluster")
    assert leftovers() == []


def wait_until(happened: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Returns once the server listens on the loopback port; fails if it ends or takes longer than 30 s."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, f"{server.args!r} ended with status {server.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port} after 30 s")
