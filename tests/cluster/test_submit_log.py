"""The log of a job that is followed: whole, each line once, through broken connections and a server that is away."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from following import Following
from kubelet import Kubelet, running_kubelet
from kuberay import Operator
from processes import free_port, wait_until

from historay.cluster.kube import KubernetesJobs
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage
from historay.errors import Unreachable
from historay.training.settings import TrainConfig

JOB = "train-demo-1"


@pytest.fixture
def jobs(jobs: KubernetesJobs, monkeypatch: pytest.MonkeyPatch) -> KubernetesJobs:
    """With a job that is submitted, and looked at often."""
    for module in ("follow", "kube"):
        monkeypatch.setattr(f"historay.cluster.{module}._POLL_S", 0.2)
    jobs.submit(Stage("train", TrainConfig(run="demo", dataset="demo", store="s3://bucket/store")), SubmitConfig(), JOB)
    return jobs


@pytest.fixture
def kubelet(operator: Operator, tmp_path: Path) -> Iterator[Kubelet]:
    with running_kubelet(operator.core, f"node-{operator.namespace}", free_port(), tmp_path) as running:
        yield running


def _submitter_runs(jobs: KubernetesJobs, operator: Operator, kubelet: Kubelet) -> str:
    operator.take_up(JOB)
    operator.create_submitter(JOB, nodeName=kubelet.node)
    wait_until(lambda: bool(jobs._submitters(JOB)), 180, "the submitter's pod")
    return str(jobs._submitters(JOB)[0]["metadata"]["name"])


def _printed(following: Following) -> Callable[[int], bool]:
    return lambda number: len(following.out.getvalue().splitlines()) >= number


def test_the_log_is_streamed_while_the_job_runs_and_survives_a_broken_connection(
    jobs: KubernetesJobs, operator: Operator, kubelet: Kubelet
) -> None:
    pod = _submitter_runs(jobs, operator, kubelet)
    following = Following(jobs, JOB)
    operator.status(JOB, jobDeploymentStatus="Running", jobStatus="RUNNING")
    kubelet.write(pod, "epoch=1 val_auc=0.71", "épochè=2")
    wait_until(lambda: _printed(following)(2), 180, "the first lines")
    kubelet.drop()
    kubelet.write(pod, "epoch=3")
    wait_until(lambda: _printed(following)(3), 180, "the line after the break")
    kubelet.write(pod, "train done")
    kubelet.end(pod)
    operator.status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    following.end()
    assert following.out.getvalue().splitlines() == ["epoch=1 val_auc=0.71", "épochè=2", "epoch=3", "train done"]


def test_no_line_is_printed_twice_where_the_server_was_away_for_a_moment(
    jobs: KubernetesJobs, operator: Operator, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = _submitter_runs(jobs, operator, kubelet)
    ask, away = jobs._submitters, threading.Event()

    def ask_or_fail(name: str) -> list[dict[str, Any]]:
        if away.is_set():
            raise Unreachable("the API server does not answer")
        return ask(name)

    monkeypatch.setattr(jobs, "_submitters", ask_or_fail)
    following = Following(jobs, JOB)
    operator.status(JOB, jobDeploymentStatus="Running", jobStatus="RUNNING")
    kubelet.write(pod, "epoch=1", "epoch=2")
    wait_until(lambda: _printed(following)(2), 180, "the first lines")
    away.set()
    kubelet.drop()  # the next look for the pods fails
    time.sleep(1)  # some of them
    away.clear()
    kubelet.write(pod, "train done")
    kubelet.end(pod)
    wait_until(lambda: _printed(following)(3), 180, "the last line")
    operator.status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    following.end()
    assert following.out.getvalue().splitlines() == ["epoch=1", "epoch=2", "train done"]


def test_the_log_of_an_ended_job_is_printed_whole(jobs: KubernetesJobs, operator: Operator, kubelet: Kubelet) -> None:
    pod = _submitter_runs(jobs, operator, kubelet)
    kubelet.write(pod, *(f"line {number}" for number in range(1000)))
    kubelet.end(pod)
    assert list(jobs.lines(JOB, lambda: True)) == [f"line {number}" for number in range(1000)]
