"""The reading of messages, without a server; test_submit_follow.py reads them from a real one."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from historay.cluster.jobs import exit_code_in
from historay.cluster.obstacles import find_obstacles, untouched
from historay.cluster.status import read_rayjob


def pod(uid: str = "1", role: str = "worker", **status: object) -> dict[str, object]:
    return {"metadata": {"name": f"pod-{uid}", "uid": uid, "labels": {"ray.io/node-type": role}}, "status": status}


def unplaced(message: str, uid: str = "1") -> dict[str, object]:
    return pod(uid, conditions=[{"type": "PodScheduled", "status": "False", "message": message}])


@given(st.text())
def test_a_message_that_no_rule_knows_is_quoted_and_never_lost(message: str) -> None:
    (told,) = find_obstacles([unplaced(f"moon {message}")], [])
    assert told == f"worker: cannot be placed: moon {message}" or "cannot be placed" not in told


def test_every_cause_in_one_message_is_told() -> None:
    mixed = (
        "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint {a: b}."
    )
    (told,) = find_obstacles([unplaced(mixed)], [])
    for words in ("GPUs free", "CPUs free", "taint {a: b}"):
        assert words in told


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("TriggeredScaleUp", "the cluster autoscaler is adding a node"),
        ("NotTriggerScaleUp", "the cluster autoscaler adds no node (1 max node group size reached)"),
    ],
)
def test_what_the_cluster_autoscaler_does_about_it_is_told(reason: str, words: str) -> None:
    event = {"reason": reason, "message": "1 max node group size reached", "involvedObject": {"kind": "Pod", "uid": "1"}}
    assert words in find_obstacles([unplaced("0/1 nodes are available: 1 Insufficient cpu.")], [event])[0]


def test_pods_that_run_are_no_obstacle() -> None:
    running = {"name": "ray-worker", "state": {"running": {}}, "lastState": {}}
    assert find_obstacles([pod(phase="Running", containerStatuses=[running])], []) == []


def test_a_container_that_keeps_ending_is_told_with_its_exit_code() -> None:
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    crashing = {"name": "ray-head", "state": state, "lastState": {"terminated": {"exitCode": 7, "reason": "Error"}}}
    told = find_obstacles([pod(role="head", phase="Running", containerStatuses=[crashing])], [])
    assert told == ["head: its container keeps ending with exit code 7; kubectl logs --previous says why"]


def test_a_job_is_called_untouched_only_if_it_is_old_new_in_phase_and_not_suspended() -> None:
    now = datetime.now(UTC)

    def told(age_s: float, phase: str = "", *, suspend: bool = False) -> bool:
        created = (now - timedelta(seconds=age_s)).isoformat()
        rayjob = {
            "metadata": {"creationTimestamp": created},
            "spec": {"suspend": suspend},
            "status": {"jobDeploymentStatus": phase},
        }
        return bool(untouched(rayjob, now, "team"))

    assert told(31)
    assert not told(29)
    assert not told(31, "Initializing")
    assert not told(31, suspend=True)


@pytest.mark.parametrize(
    ("message", "code"), [("failed with exit code 137, last", 137), ("exit code 0x", 0), ("", None), ("7", None)]
)
def test_the_exit_code_is_read_from_what_ray_says(message: str, code: int | None) -> None:
    assert exit_code_in(message) == code


def test_a_failed_job_never_exits_with_success() -> None:
    status = {"jobDeploymentStatus": "Failed", "message": "exit code 0"}
    assert read_rayjob({"metadata": {"name": "a"}, "status": status}).exit_status == 1


def test_a_job_that_is_being_deleted_is_said_to_be() -> None:
    view = read_rayjob({"metadata": {"name": "a", "deletionTimestamp": "2026-11-25T08:00:00Z"}, "status": {}})
    assert view.words == "being cancelled"
