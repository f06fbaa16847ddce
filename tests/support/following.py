"""A follow in a thread, for tests that change the job meanwhile."""

import io
import threading

from processes import wait_until

from historay.cluster.follow import follow
from historay.cluster.jobs import JobView
from historay.cluster.kube import KubernetesJobs


class Following:
    """A follow in a thread, with what it has told and printed so far."""

    def __init__(self, jobs: KubernetesJobs, name: str) -> None:
        self._name = name
        self.told: list[str] = []
        self.out = io.StringIO()
        self.view: JobView | None = None
        self._thread = threading.Thread(target=self._follow, args=(jobs,), daemon=True)
        self._thread.start()

    def _follow(self, jobs: KubernetesJobs) -> None:
        self.view = follow(jobs, self._name, self.told.append, self.out)

    def wait_for(self, words: str) -> None:
        wait_until(lambda: any(words in told for told in self.told), 180, f"{words!r} in {self.told}")

    def end(self) -> JobView:
        self._thread.join(timeout=180)
        assert self.view is not None, self.told
        return self.view
