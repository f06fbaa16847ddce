"""Jobs on a plain Ray cluster, through the job API of its dashboard; a token comes from RAY_AUTH_TOKEN, as Ray reads it."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from historay.cluster.jobs import JobView, Phase
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import CONFIG_FILE, Stage, output_id
from historay.errors import ClusterError, Unreachable

_STAGE, _OUTPUT = "historay/stage", "historay/output"
_POLL_S = 1.0
_PHASES: dict[str, tuple[Phase, str]] = {
    "PENDING": ("waiting", "handed to Ray; waits for free CPUs or GPUs"),
    "RUNNING": ("running", "running"),
    "STOPPED": ("stopped", "stopped by somebody through Ray"),
    "SUCCEEDED": ("succeeded", "succeeded"),
    "FAILED": ("failed", "the stage failed; the reason is at the end of its log"),
}


class RayJobs:
    """Jobs of one Ray cluster, on whose machines the same Historay must be installed."""

    def __init__(self, address: str) -> None:
        self.where, self.flags = address, f" --address {address}"
        with self._in_words():
            self._client = JobSubmissionClient(address)

    def submit(self, stage: Stage, cluster: SubmitConfig, name: str) -> None:
        self._refuse_twin(stage)
        on_worker = stage.computes_in_driver
        with tempfile.TemporaryDirectory() as folder, self._in_words(name):
            for file, text in stage.files(".").items():  # the job starts in this folder
                Path(folder, file).write_text(text)
            self._client.submit_job(
                entrypoint=f"historay {stage.name} {CONFIG_FILE}",
                submission_id=name,
                runtime_env={"working_dir": folder, "env_vars": dict(entry.split("=", 1) for entry in cluster.env)},
                metadata={_STAGE: stage.name, _OUTPUT: output_id(stage) or ""},
                entrypoint_num_cpus=cluster.cpus if on_worker else None,
                entrypoint_num_gpus=cluster.gpus if on_worker and cluster.gpus else None,
            )

    def view(self, name: str) -> JobView:
        with self._in_words(name):
            return _read(self._client.get_job_info(name))

    def views(self) -> list[JobView]:
        with self._in_words():
            found = [job for job in self._client.list_jobs() if _STAGE in (job.metadata or {})]
        return [_read(job) for job in sorted(found, key=lambda job: job.start_time or 0)]

    def obstacles(self, name: str) -> list[str]:  # noqa: ARG002
        return []  # Ray says no more of a waiting job than that it waits

    def lines(self, name: str, ended: Callable[[], bool]) -> Iterator[str]:
        num_read = 0
        while True:
            last = ended()
            try:
                # The whole log each time: Historay's are short, and a broken connection then costs nothing.
                lines = self._log(name)
            except Unreachable:
                if last:
                    raise
                lines = []
            whole = lines if last else [line for line in lines if line.endswith("\n")]
            for line in whole[num_read:]:
                yield line.rstrip("\n")
            num_read = max(num_read, len(whole))
            if last:
                return
            time.sleep(_POLL_S)

    def _log(self, name: str) -> list[str]:
        with self._in_words(name):
            return self._client.get_job_logs(name).splitlines(keepends=True)

    def cancel(self, name: str) -> str:
        with self._in_words(name):
            self._client.stop_job(name)
            waits = self._client.get_job_info(name).status == JobStatus.PENDING
        return "will be stopped once it starts; Ray cannot stop a job that waits for CPUs" if waits else "cancelled"

    def remove(self, name: str) -> None:
        with self._in_words(name):
            self._client.delete_job(name)

    def _refuse_twin(self, stage: Stage) -> None:
        output = output_id(stage)
        with self._in_words():
            twins = [_read(job) for job in self._client.list_jobs() if output and (job.metadata or {}).get(_OUTPUT) == output]
        for view in twins:
            if not view.ended:
                raise ClusterError(
                    f"{stage.name} {stage.subject}: the job {view.name} is at it already ({view.words}); wait for it "
                    f"(historay jobs wait {view.name}{self.flags}) or cancel it"
                )

    @contextmanager
    def _in_words(self, name: str = "") -> Iterator[None]:
        """Turns what Ray's client raises into our errors."""
        try:
            yield
        except AuthenticationError:
            raise ClusterError(f"{self.where} asks for its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN") from None
        except (ConnectionError, requests.exceptions.RequestException):
            raise Unreachable(
                f"{self.where} does not answer; it must be the address of the Ray dashboard, http://HOST:8265"
            ) from None
        except RuntimeError as error:
            if "404" in str(error):
                raise ClusterError(
                    f"{self.where} has no job {name}; historay jobs list{self.flags} shows those there are"
                ) from None
            if "try again later" in str(error):
                raise Unreachable(
                    f"{self.where} has only just started and takes no jobs yet; try again in half a minute"
                ) from None
            raise ClusterError(f"{self.where} refuses: {error}") from None


def _read(job: JobDetails) -> JobView:
    status = str(getattr(job.status, "value", job.status))
    phase, words = _PHASES.get(status, ("waiting", f"in the phase {status!r}, which this Historay does not know"))
    message = (job.message or "").strip().partition("\n")[0]
    return JobView(
        name=job.submission_id or "?",
        stage=(job.metadata or {}).get(_STAGE, "?"),
        phase=phase,
        words=f"{words} ({message})" if phase == "failed" and message else words,
        created=datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None,
        exit_code=job.driver_exit_code or None,
    )
