"""Follows a job to its end: phases and obstacles in words on standard error, its log on standard output."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from historay.cluster.jobs import Jobs, JobView
from historay.errors import ClusterError, Unreachable

_POLL_S = 2.0
_PATIENCE_S = 300.0  # an API server is away for as long while its control plane is upgraded
_LAST_LINES_S = 15.0  # for the end of the log, after the job has ended
INTERRUPTED = 130

Tell = Callable[[str], None]


def follow(jobs: Jobs, name: str, tell: Tell, out: TextIO) -> JobView:
    """Blocks until the job has ended and returns the last look at it; told is each phase and each obstacle once."""
    ended = threading.Event()
    printer = threading.Thread(target=_print_log, args=(jobs, name, ended, tell, out), daemon=True)
    printer.start()
    try:
        view = _watch(jobs, name, tell)
    finally:
        ended.set()
    printer.join(timeout=_LAST_LINES_S)
    tell(f"{name}: {view.words}")
    return view


def ask_to_cancel(jobs: Jobs, name: str, tell: Tell) -> int:
    """After Ctrl-C: the job goes on unless the user says otherwise, which is asked on a terminal only."""
    answer = ""
    if sys.stdin.isatty():
        tell(f"{name} goes on. Cancel it? [y/N]")
        try:
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            tell("")
    if answer.strip().lower() in {"y", "yes"}:
        tell(f"{name}: {jobs.cancel(name)}")
    else:
        tell(f"{name} goes on; historay jobs wait {name}{jobs.flags} follows it again")
    return INTERRUPTED


def _watch(jobs: Jobs, name: str, tell: Tell) -> JobView:
    said: set[str] = set()
    patient_until = time.monotonic() + _PATIENCE_S
    phase = ""
    while True:
        try:
            view = jobs.view(name)
            obstacles = jobs.obstacles(name) if view.phase == "waiting" else []
        except Unreachable as error:
            if time.monotonic() > patient_until:
                raise
            _tell_once(f"{error}; the job goes on, asking again", said, tell)
            time.sleep(_POLL_S)
            continue
        patient_until = time.monotonic() + _PATIENCE_S
        if view.ended:
            return view
        if view.words != phase:
            phase = view.words
            tell(f"{name}: {phase}")
        for obstacle in obstacles:
            _tell_once(f"{name}: {obstacle}", said, tell)
        time.sleep(_POLL_S)


def _tell_once(text: str, said: set[str], tell: Tell) -> None:
    if text not in said:
        said.add(text)
        tell(text)


def _print_log(jobs: Jobs, name: str, ended: threading.Event, tell: Tell, out: TextIO) -> None:
    """Runs beside the watch; a log that cannot be read is said and does not end the watch."""
    try:
        for line in jobs.lines(name, ended.is_set):
            print(line, file=out, flush=True)
    except ClusterError as error:
        tell(f"{name}: its log cannot be read: {error}")
