"""What a job is to its user, wherever it runs: a phase in words, an exit status, and the few things that one can do with it."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage

Phase = Literal["waiting", "running", "succeeded", "failed", "stopped"]
ENDED: frozenset[Phase] = frozenset({"succeeded", "failed", "stopped"})
_EXIT_CODE = re.compile(r"exit code (\d+)")


class JobView(NamedTuple):
    """One look at a job."""

    name: str
    stage: str
    phase: Phase
    words: str  # what the phase means, and at the end why
    created: datetime | None
    exit_code: int | None = None  # of the driver, where it is told

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.phase in ENDED

    @property
    def exit_status(self) -> int:
        """The status with which a shell should see the job: its own where it is known, else 0 or 1."""
        if self.phase == "succeeded":
            return 0
        return self.exit_code or 1


class Jobs(Protocol):
    """Where jobs run. Every method raises ClusterError in words, and Unreachable if a later try may succeed."""

    where: str  # for messages: "namespace x of context y", or the address
    flags: str  # what a later command needs to come back here, such as " --namespace x"

    def submit(self, stage: Stage, cluster: SubmitConfig, name: str) -> None:
        """Creates the job; refuses if an unfinished one writes the same run, search or data set."""

    def view(self, name: str) -> JobView:
        """Looks at a job."""

    def views(self) -> list[JobView]:
        """Looks at all of Historay's jobs, oldest first."""

    def obstacles(self, name: str) -> list[str]:
        """Says what keeps the job's pods from running, and the fix."""

    def lines(self, name: str, ended: Callable[[], bool]) -> Iterator[str]:
        """Yields each line of the job's log once, from its start until ``ended`` says so; before that it waits for a server."""

    def cancel(self, name: str) -> str:
        """Ends a job and what belongs to it; returns what became of it, in words."""

    def remove(self, name: str) -> None:
        """Forgets a job that has ended."""


def exit_code_in(message: str) -> int | None:
    """Finds the driver's exit code in what Ray says of a failed job."""
    found = _EXIT_CODE.search(message)
    return int(found.group(1)) if found else None
