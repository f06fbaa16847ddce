"""Reads a RayJob's status, as KubeRay 1.7 writes it, into words."""

from datetime import UTC, datetime
from typing import Any

from historay.cluster.jobs import JobView, Phase, exit_code_in
from historay.cluster.rayjob import STAGE_LABEL

# What status.jobDeploymentStatus says while the job is not over. Running is refined by status.jobStatus below.
_UNDERWAY: dict[str, tuple[Phase, str]] = {
    "": ("waiting", "accepted; the KubeRay operator has not taken it up yet"),
    "Initializing": ("waiting", "its pods are starting"),
    "Waiting": ("waiting", "its pods run; Ray waits to be given the job"),
    "Suspending": ("waiting", "being put back in the queue; its pods are going"),
    "Suspended": ("waiting", "queued; nothing runs until it is admitted"),
    "Retrying": ("waiting", "an attempt failed; a new cluster is being made for the next"),
}
_RUNNING: dict[str, tuple[Phase, str]] = {
    "": ("waiting", "its pods run; being handed to Ray"),
    "PENDING": ("waiting", "handed to Ray; waits for free CPUs or GPUs of its own cluster"),
    "RUNNING": ("running", "running"),
    "STOPPED": ("running", "stopped; KubeRay is noting it down"),
    "SUCCEEDED": ("running", "done; KubeRay is noting it down"),
    "FAILED": ("running", "failed; KubeRay is noting it down"),
}
_COMPLETE: dict[str, tuple[Phase, str]] = {
    "SUCCEEDED": ("succeeded", "succeeded"),
    "STOPPED": ("stopped", "stopped by somebody through Ray"),
    "FAILED": ("failed", "the stage failed; the reason is at the end of its log"),
}
# What status.reason says of a failed job: what it means, and what to do.
_REASONS = {
    "AppFailed": "the stage failed; the reason is at the end of its log",
    "SubmissionFailed": "Ray never ran it: the submitter pod could not hand it over; see its log, and the head's",
    "DeadlineExceeded": "it was ended at its deadline; raise --deadline-h and submit it again, training goes on where it was",
    "PreRunningDeadlineExceeded": "its pods did not start in time; mend what kept them, or raise --start-deadline-min",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "Ray ended the job, and the submitter pod did not follow; see the log",
    "JobStatusCheckTimeoutExceeded": "the head could no longer be asked; it or its node was lost. Submit it again",
    "ValidationFailed": "the KubeRay operator refuses it",
}


def read_rayjob(rayjob: dict[str, Any]) -> JobView:
    """Returns what a RayJob, as the API server gives it, means."""
    metadata, status = rayjob["metadata"], rayjob.get("status", {})
    phase, words = _phase(status)
    if "deletionTimestamp" in metadata:
        phase, words = "waiting", "being cancelled"
    elif status.get("failed") and phase in {"waiting", "running"} and status.get("jobDeploymentStatus") != "Retrying":
        words = f"{words} (attempt {status['failed'] + 1})"
    return JobView(
        name=metadata["name"],
        stage=metadata.get("labels", {}).get(STAGE_LABEL, "?"),
        phase=phase,
        words=words,
        created=_time(metadata.get("creationTimestamp")),
        exit_code=exit_code_in(status.get("message", "")),
    )


def _phase(status: dict[str, Any]) -> tuple[Phase, str]:
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment in {"Failed", "ValidationFailed"}:
        return "failed", _failure(status, deployment)
    if deployment == "Complete":
        phase, words = _COMPLETE.get(job, ("failed", f"ended with jobStatus {job!r}, which this Historay does not know"))
        return phase, _quoting(words, status) if phase == "failed" else words
    known = _RUNNING if deployment == "Running" else _UNDERWAY
    value = job if deployment == "Running" else deployment
    return known.get(value, ("waiting", f"in the phase {value!r}, which this Historay does not know"))


def _failure(status: dict[str, Any], deployment: str) -> str:
    reason = status.get("reason", deployment)
    return _quoting(_REASONS.get(reason, f"failed with the reason {reason}"), status)


def _quoting(words: str, status: dict[str, Any]) -> str:
    """Appends what KubeRay or Ray said, to its first line: Ray appends the last lines of the log, which are shown anyway."""
    message = status.get("message", "").strip().partition("\n")[0]
    return f"{words} ({message})" if message else words


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
