"""Following a job on a real API server: every phase and failure of the definition, what keeps pods from running."""

import json
from datetime import timedelta
from typing import NamedTuple

import pytest
from apiserver import Cluster
from following import Following
from kuberay import Operator
from kubernetes.client.exceptions import ApiException
from processes import wait_until

from historay.cluster.kube import KubernetesJobs
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage
from historay.training.settings import TrainConfig

TRAIN = Stage("train", TrainConfig(run="demo", dataset="demo", store="s3://bucket/store"))
JOB = "train-demo-1"


@pytest.fixture
def jobs(jobs: KubernetesJobs, monkeypatch: pytest.MonkeyPatch) -> KubernetesJobs:
    for module in ("follow", "kube"):  # these tests change the job as soon as the last change was told
        monkeypatch.setattr(f"historay.cluster.{module}._POLL_S", 0.2)
    jobs.submit(TRAIN, SubmitConfig(), JOB)
    return jobs


UNDERWAY = [
    ("", "", "waiting", "accepted; the KubeRay operator has not taken it up yet"),
    ("Initializing", "", "waiting", "its pods are starting"),
    ("Waiting", "", "waiting", "its pods run; Ray waits to be given the job"),
    ("Suspending", "RUNNING", "waiting", "being put back in the queue; its pods are going"),
    ("Suspended", "", "waiting", "queued; nothing runs until it is admitted"),
    ("Retrying", "FAILED", "waiting", "an attempt failed; a new cluster is being made for the next"),
    ("Running", "", "waiting", "its pods run; being handed to Ray"),
    ("Running", "PENDING", "waiting", "handed to Ray; waits for free CPUs or GPUs of its own cluster"),
    ("Running", "RUNNING", "running", "running"),
    ("Running", "SUCCEEDED", "running", "done; KubeRay is noting it down"),
    ("Running", "FAILED", "running", "failed; KubeRay is noting it down"),
    ("Running", "STOPPED", "running", "stopped; KubeRay is noting it down"),
    ("Paused", "", "waiting", "in the phase 'Paused', which this Historay does not know"),
]


def test_every_phase_of_the_definition_is_told_once_and_in_words(jobs: KubernetesJobs, operator: Operator) -> None:
    following = Following(jobs, JOB)
    for deployment, job, phase, words in UNDERWAY:
        operator.status(JOB, jobDeploymentStatus=deployment, jobStatus=job)
        view = jobs.view(JOB)
        assert (view.phase, view.words) == (phase, words)
        following.wait_for(words)
    operator.status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert following.end().exit_status == 0
    assert following.told == [f"{JOB}: {words}" for *_, words in UNDERWAY] + [f"{JOB}: succeeded"]


# Messages as KubeRay 1.7's rayjob_controller.go and validation.go and Ray's job_supervisor.py write them.
class Failure(NamedTuple):
    deployment: str
    job: str
    reason: str
    message: str
    words: str
    exit_status: int = 1


FAILED = [
    Failure(
        "Failed",
        "FAILED",
        "AppFailed",
        "Job entrypoint command failed with exit code 3, last available logs",
        "the stage failed",
        3,
    ),
    Failure("Failed", "FAILED", "AppFailed", "Ray head pod not found.", "(Ray head pod not found.)"),
    Failure(
        "Failed",
        "",
        "AppFailed",
        "Submitter completed but Ray job not found in RayCluster.",
        "(Submitter completed but Ray job not found in RayCluster.)",
    ),
    Failure(
        "Failed",
        "",
        "SubmissionFailed",
        "Job submission has failed. Reason: BackoffLimitExceeded. Message: Job has reached the specified backoff limit",
        "Ray never ran it: the submitter pod could not hand it over; see its log, and the head's",
    ),
    Failure(
        "Failed",
        "RUNNING",
        "DeadlineExceeded",
        "The RayJob has passed the activeDeadlineSeconds. StartTime: 2026-11-25. ActiveDeadlineSeconds: 86400",
        "it was ended at its deadline; raise --deadline-h and submit it again",
    ),
    Failure(
        "Failed",
        "",
        "PreRunningDeadlineExceeded",
        "The RayJob has passed the preRunningDeadlineSeconds. StartTime: 2026-11-25. PreRunningDeadlineSeconds: 3600",
        "its pods did not start in time; mend what kept them, or raise --start-deadline-min",
    ),
    Failure(
        "Failed",
        "SUCCEEDED",
        "JobDeploymentStatusTransitionGracePeriodExceeded",
        "JobDeploymentStatus does not transition to Complete or Failed within the grace period after JobStatus reaches a "
        "terminal state.",
        "Ray ended the job, and the submitter pod did not follow",
    ),
    Failure(
        "Failed",
        "RUNNING",
        "JobStatusCheckTimeoutExceeded",
        "Job status checks have been failing since 2026-11-25; exceeded timeout of 300s",
        "the head could no longer be asked; it or its node was lost. Submit it again",
    ),
    Failure(
        "ValidationFailed",
        "",
        "ValidationFailed",
        "The RayJob metadata is invalid: RayJob name should be no more than 47 characters",
        "the KubeRay operator refuses it (The RayJob metadata is invalid",
    ),
    Failure("Failed", "FAILED", "Moonquake", "the moon shook", "failed with the reason Moonquake (the moon shook)"),
    Failure("Complete", "FAILED", "", "", "the stage failed; the reason is at the end of its log"),
    Failure("Complete", "STOPPED", "", "", "stopped by somebody through Ray"),
]


@pytest.mark.parametrize("case", FAILED)
def test_every_failure_ends_in_words_and_a_status(jobs: KubernetesJobs, operator: Operator, case: Failure) -> None:
    operator.status(JOB, jobDeploymentStatus=case.deployment, jobStatus=case.job, reason=case.reason, message=case.message)
    view = Following(jobs, JOB).end()
    assert case.words in view.words
    assert view.exit_status == case.exit_status


def test_a_second_attempt_is_counted(jobs: KubernetesJobs, operator: Operator) -> None:
    operator.status(JOB, jobDeploymentStatus="Running", jobStatus="RUNNING", failed=1)
    assert jobs.view(JOB).words == "running (attempt 2)"


# The scheduler's texts, from pkg/scheduler of Kubernetes 1.34; no scheduler runs here.
UNSCHEDULABLE = [
    ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "no node has that many GPUs free"),
    ("0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available.", "no node has that many CPUs free"),
    ("0/3 nodes are available: 3 Insufficient memory.", "no node has that much memory free"),
    ('0/3 nodes are available: persistentvolumeclaim "tiles" not found.', "there is no PersistentVolumeClaim tiles"),
    (
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        "the PersistentVolumeClaim has no volume yet",
    ),
    ("0/3 nodes are available: 3 node(s) had untolerated taint {team: b}.", "kept for other pods by a taint {team: b}"),
    ("no nodes available to schedule pods", "the cluster has no node that takes pods"),
    ("0/1 nodes are available: 1 moon too far.", "cannot be placed: 0/1 nodes are available: 1 moon too far."),
]


@pytest.mark.parametrize(("message", "words"), UNSCHEDULABLE)
def test_a_pod_that_cannot_be_placed_is_told_with_the_reason(
    jobs: KubernetesJobs, operator: Operator, message: str, words: str
) -> None:
    operator.take_up(JOB)
    for role in ("head", "worker", "worker"):
        operator.unschedulable(operator.create_pod(JOB, role)["metadata"]["name"], message)
    following = Following(jobs, JOB)
    following.wait_for(f"{JOB}: 2 pods, worker: ")
    following.wait_for(words)
    assert len([told for told in following.told if words in told]) == 2  # once for the head, once for both workers
    operator.status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    following.end()


# The kubelet's texts, from pkg/kubelet of Kubernetes 1.34 and containerd.
WAITING = [
    (
        "ErrImagePull",
        'failed to pull and unpack image "historay:cpu": failed to resolve reference: historay:cpu: not found',
        "the image historay:cpu cannot be pulled; the registry does not have it; push it or correct --image",
    ),
    (
        "ErrImagePull",
        "failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized",
        "cannot be pulled; the registry refuses access; give the service account an image pull secret",
    ),
    ("ImagePullBackOff", 'Back-off pulling image "historay:cpu"', "the image historay:cpu cannot be pulled; push it"),
    ("ErrImageNeverPull", "Container image is not present with pull policy of Never", "load it (kind load docker-image)"),
    ("CreateContainerConfigError", 'secret "s3" not found', "there is no Secret s3 in this namespace"),
    ("CreateContainerConfigError", "couldn't find key token in Secret team/s3", "the Secret s3 has no key token"),
    (
        "CreateContainerConfigError",
        'configmap "train-demo-1" not found',
        "the ConfigMap train-demo-1 with the stage's settings",
    ),
    (
        "CreateContainerConfigError",
        "container has runAsNonRoot and image will run as root",
        "its image runs as root, which pods may not",
    ),
    ("RunContainerError", 'exec: "bash": executable file not found', 'its container cannot start: exec: "bash"'),
]


@pytest.mark.parametrize(("reason", "message", "words"), WAITING)
def test_a_container_that_cannot_start_is_told_with_the_reason(
    jobs: KubernetesJobs, operator: Operator, reason: str, message: str, words: str
) -> None:
    operator.take_up(JOB)
    operator.waiting(operator.create_pod(JOB, "head")["metadata"]["name"], "ray-head", reason, message)
    (obstacle,) = jobs.obstacles(JOB)
    assert obstacle.startswith("head: ")
    assert words in obstacle


def test_a_missing_volume_a_full_node_and_too_little_memory_are_told(jobs: KubernetesJobs, operator: Operator) -> None:
    operator.take_up(JOB)
    mounting, evicted, killed = (operator.create_pod(JOB, "worker")["metadata"] for _ in range(3))
    message = 'MountVolume.SetUp failed for volume "config" : configmap "train-demo-1" not found'
    operator.event("Pod", mounting["name"], "FailedMount", message, uid=mounting["uid"])
    operator.pod_status(evicted["name"], phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    shown = {
        "name": "ray-worker",
        "image": "x",
        "imageID": "",
        "ready": False,
        "restartCount": 1,
        "state": {},
        "lastState": ended,
    }
    operator.pod_status(killed["name"], phase="Running", containerStatuses=[shown])
    assert set(jobs.obstacles(JOB)) == {
        "worker: the ConfigMap train-demo-1 with the stage's settings is gone; submit the job again",
        "worker: evicted from its node: The node was low on resource: memory.",
        "worker: killed for using more memory than it asked for; raise --memory or --head-memory",
    }


def _refused(operator: Operator, **spec: object) -> None:
    """Has the server refuse the head's pod, and says so in an event as the operator does."""
    with pytest.raises(ApiException) as refusal:
        operator.create_pod(JOB, "head", **spec)
    message = json.loads(str(refusal.value.body))["message"]
    operator.event("RayCluster", f"{JOB}-abcde", "FailedToCreateHeadPod", f"Failed to create head Pod, {message}")


def test_a_used_up_quota_is_told_by_its_name_and_numbers(cluster: Cluster, jobs: KubernetesJobs, operator: Operator) -> None:
    cluster.kubectl("create", "quota", "team", "--hard=requests.cpu=3", "-n", operator.namespace)
    wait_until(lambda: bool(cluster.get("quota", "team", "-n", operator.namespace)["status"].get("hard")), 600, "the quota")
    operator.take_up(JOB)
    operator.create_pod(JOB, "head")  # 2 CPUs
    _refused(operator)
    (obstacle,) = jobs.obstacles(JOB)
    assert "the namespace's quota team is used up (asks for requests.cpu=2, used requests.cpu=2, of requests.cpu=3" in obstacle


def test_a_submitter_that_the_quota_refuses_is_told_from_the_job_controller_s_own_event(
    cluster: Cluster, jobs: KubernetesJobs, operator: Operator
) -> None:
    cluster.kubectl("create", "quota", "team", "--hard=pods=0", "-n", operator.namespace)
    operator.take_up(JOB)
    wait_until(lambda: bool(cluster.get("quota", "team", "-n", operator.namespace)["status"].get("hard")), 600, "the quota")
    operator.create_submitter(JOB)
    wait_until(lambda: bool(jobs.obstacles(JOB)), 600, "the job controller's event")
    assert "the namespace's quota team is used up (asks for pods=1, used pods=0, of pods=0" in jobs.obstacles(JOB)[0]


REFUSALS = [
    ({"priorityClassName": "urgent"}, "there is no PriorityClass urgent; kubectl get priorityclass lists them"),
    ({"serviceAccountName": "absent"}, "there is no service account absent in this namespace; correct --service-account"),
    ({"hostNetwork": True}, "the namespace's Pod Security level restricted:latest refuses it: host namespaces"),
]


@pytest.mark.parametrize(("spec", "words"), REFUSALS)
def test_what_the_server_itself_says_against_a_pod_is_told(
    cluster: Cluster, jobs: KubernetesJobs, operator: Operator, spec: dict[str, object], words: str
) -> None:
    cluster.kubectl("label", "namespace", operator.namespace, "pod-security.kubernetes.io/enforce=restricted")
    operator.take_up(JOB)
    _refused(operator, **spec)
    (obstacle,) = jobs.obstacles(JOB)
    assert words in obstacle


def test_a_limit_range_is_told(cluster: Cluster, jobs: KubernetesJobs, operator: Operator) -> None:
    spec = {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": spec}
    cluster.kubectl("apply", "-n", operator.namespace, "-f", "-", stdin=json.dumps(limits))
    operator.take_up(JOB)
    _refused(operator)
    assert (
        "the namespace's LimitRange refuses it: maximum cpu usage per Container is 1, but limit is 2" in jobs.obstacles(JOB)[0]
    )


def test_a_queue_without_room_and_a_queue_that_is_not_there_are_told(jobs: KubernetesJobs, operator: Operator) -> None:
    operator.status(JOB, jobDeploymentStatus="Suspended")
    full = (
        "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu in flavor a100, 2 more needed"
    )
    operator.event("Workload", f"rayjob-{JOB}-1a2b3", "Pending", full)
    operator.event("Workload", f"rayjob-{JOB}-1a2b3", "Inadmissible", "LocalQueue team-a doesn't exist")
    assert jobs.obstacles(JOB) == [
        f"queued; Kueue has no room for it now: {full}",
        "LocalQueue team-a doesn't exist; kubectl get localqueue lists those of this namespace",
    ]


def test_a_job_that_no_operator_touches_is_told_after_half_a_minute(
    jobs: KubernetesJobs, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "historay.cluster.obstacles._UNTOUCHED"
    monkeypatch.setattr(limit, timedelta(hours=1))
    assert jobs.obstacles(JOB) == []
    monkeypatch.setattr(limit, timedelta(0))
    wait_until(lambda: bool(jobs.obstacles(JOB)), 600, "the obstacle")
    assert f"does it watch the namespace {operator.namespace}?" in jobs.obstacles(JOB)[0]
