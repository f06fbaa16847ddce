"""historay submit --address on a real, plain Ray cluster: the same words and statuses as on Kubernetes."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from processes import wait_until
from ray.job_submission import JobSubmissionClient

from historay.cli import _STAGES
from historay.cluster.commands import jobs as manage
from historay.cluster.commands import submit
from historay.cluster.ray_jobs import RayJobs
from historay.errors import ClusterError, Unreachable

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),  # each job starts a worker and a driver of its own
    # Ray Data warns of fields of its own when it is first used.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


@pytest.fixture(scope="module")
def address(ray_cluster: None) -> str:
    from ray._private.worker import get_dashboard_url

    url = f"http://{get_dashboard_url()}"
    wait_until(lambda: _takes_jobs(url), 900, "the cluster taking jobs")
    return url


def _takes_jobs(url: str) -> bool:
    try:
        JobSubmissionClient(url).submit_job(entrypoint="true")
    except (RuntimeError, OSError):  # no dashboard or no agent is there yet: the first half minute of a cluster
        return False
    return True


@pytest.fixture
def run(address: str, tmp_path: Path) -> Callable[..., int]:
    """Submits a stage with its settings; the cluster's jobs find this environment's historay."""

    def command(stage: str, settings: dict[str, object], *flags: str) -> int:
        path = tmp_path / f"{stage}.yaml"
        path.write_text(yaml.safe_dump(settings))
        environment = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
        return submit([stage, str(path), "--address", address, "--env", environment, *flags], _STAGES)

    return command


def test_a_stage_runs_there_and_its_log_and_status_come_back(
    run: Callable[..., int], tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    assert run("ingest", {"name": "small", "source": str(tiles / "manifest.csv"), "store": store}) == 0
    out, err = capsys.readouterr()
    assert "ingest done dataset=small@" in out
    assert re.search(r"ingest-small-\w+: succeeded\n$", err)
    assert run("evaluate", {"run": "absent", "store": store}, "--cpus", "1") == 1
    out, err = capsys.readouterr()
    assert "no run 'absent'; there is none" in out
    assert "the stage failed; the reason is at the end of its log" in err


def test_no_line_is_printed_twice_where_the_dashboard_was_away_for_a_moment(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = RayJobs(address)
    name = jobs._client.submit_job(entrypoint="echo first; echo second")
    wait_until(lambda: jobs.view(name).ended, 900, "the job's end")
    ask, looks = jobs._client.get_job_logs, iter([False, True, False])

    def ask_or_fail(job: str) -> str:
        if next(looks):
            raise ConnectionError
        return str(ask(job))

    monkeypatch.setattr(jobs._client, "get_job_logs", ask_or_fail)
    ends = iter([False, False, True])
    assert [line for line in jobs.lines(name, lambda: next(ends)) if line in {"first", "second"}] == ["first", "second"]


def test_a_running_job_is_listed_cancelled_waited_for_and_cleaned_away(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    there = RayJobs(address)
    name = there._client.submit_job(entrypoint="sleep 3600", metadata={"historay/stage": "train"})
    wait_until(lambda: there.view(name).phase == "running", 900, "the job's start")
    assert manage(["list", "--address", address]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if name in line)
    assert row.replace("│", " ").split()[:3] == [name, "train", "running"]
    assert manage(["cancel", name, "--address", address]) == 0
    assert manage(["wait", name, "--address", address]) == 1
    assert capsys.readouterr().err.endswith(f"{name}: stopped by somebody through Ray\n")
    assert manage(["clean", "--address", address]) == 0
    with pytest.raises(ClusterError, match=f"has no job {name}"):
        there.view(name)


def test_an_unknown_job_and_an_address_that_nobody_has_are_told(address: str) -> None:
    with pytest.raises(ClusterError, match="has no job nobody; historay jobs list --address"):
        RayJobs(address).view("nobody")
    with pytest.raises(Unreachable, match="does not answer; it must be the address of the Ray dashboard"):
        RayJobs("http://127.0.0.1:1")
