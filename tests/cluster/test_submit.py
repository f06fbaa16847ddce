"""historay submit against a real API server: what is created, refused and cancelled, and what the user reads."""

import os
import pty
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from apiserver import Cluster
from kuberay import Operator
from processes import COMMAND, wait_until
from urllib3.exceptions import ReadTimeoutError

from historay.cli import _STAGES
from historay.cluster.commands import jobs as manage
from historay.cluster.commands import submit
from historay.cluster.kube import KubernetesJobs
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage, job_name
from historay.errors import ClusterError, ConfigError, Unreachable
from historay.serving.predict_settings import PredictConfig
from historay.training.evaluate import EvaluateConfig
from historay.training.settings import TrainConfig

TRAIN = Stage("train", TrainConfig(run="demo", dataset="demo", store="s3://bucket/store"))
PREDICT = PredictConfig(images=("s3://bucket/tiles",), model="demo", store="s3://bucket/store")
CLUSTER = SubmitConfig(image="registry/historay:1")
TRAIN_YAML = {"run": "demo", "dataset": "demo", "store": "s3://bucket/store"}


@pytest.fixture
def train_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(TRAIN_YAML))
    return path


@pytest.fixture
def start(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts the command line as a user would, in the test's namespace; ends what is left of it."""
    started = []

    def begin(*arguments: str, **options: object) -> "subprocess.Popen[str]":
        environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        ends = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [str(COMMAND), *arguments, "--namespace", namespace]
        started.append(subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **ends))  # type: ignore[call-overload]
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs submit or jobs in this process, in the test's namespace, and returns the exit status."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))

    def command(name: str, *arguments: str, own: tuple[str, ...] = ()) -> int:
        given = [*arguments, "--namespace", namespace, *own]
        return submit(given, _STAGES) if name == "submit" else manage(given)

    return command


def test_the_job_and_its_settings_are_what_the_server_keeps(jobs: KubernetesJobs, operator: Operator) -> None:
    jobs.submit(TRAIN, CLUSTER, "train-demo-1")
    rayjob = operator.rayjob("train-demo-1")
    assert rayjob["spec"]["entrypoint"] == "historay train /etc/historay/config.yaml"
    assert rayjob["spec"]["activeDeadlineSeconds"] == 24 * 3600
    settings = operator.core.read_namespaced_config_map("train-demo-1", operator.namespace)
    assert TrainConfig(**yaml.safe_load(settings.data["config.yaml"])) == TRAIN.config
    assert settings.immutable
    for group in [rayjob["spec"]["rayClusterSpec"]["headGroupSpec"], *rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert {"name": "config", "configMap": {"name": "train-demo-1"}} in [
            {key: volume[key] for key in ("name", "configMap") if key in volume} for volume in pod["volumes"]
        ]
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_a_cancelled_job_takes_its_settings_with_it(jobs: KubernetesJobs, operator: Operator) -> None:
    jobs.submit(TRAIN, CLUSTER, "train-demo-1")
    jobs.cancel("train-demo-1")
    assert operator.rayjobs() == []
    maps = operator.core.list_namespaced_config_map
    wait_until(
        lambda: "train-demo-1" not in [item.metadata.name for item in maps(operator.namespace).items],
        180,
        "the ConfigMap going",
    )


def test_its_pods_pass_the_restricted_pod_security_level(cluster: Cluster, jobs: KubernetesJobs, operator: Operator) -> None:
    cluster.kubectl("label", "namespace", operator.namespace, "pod-security.kubernetes.io/enforce=restricted")
    everything = CLUSTER.model_copy(
        update={"gpus": 1, "env": ("A=b=c",), "env_from_secret": ("s3", "KEY=s3/key"), "claim": "data"}
    )
    jobs.submit(TRAIN, everything, "train-demo-1")
    operator.take_up("train-demo-1")
    head, worker = operator.create_pod("train-demo-1", "head"), operator.create_pod("train-demo-1", "worker")
    operator.create_submitter("train-demo-1")
    wait_until(lambda: len(jobs._submitters("train-demo-1")) == 1, 180, "the job controller making the submitter's pod")
    assert head["spec"]["containers"][0]["security_context"]["read_only_root_filesystem"]
    assert worker["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    environment = {entry["name"]: entry for entry in worker["spec"]["containers"][0]["env"]}
    assert environment["A"]["value"] == "b=c"
    assert environment["KEY"]["value_from"]["secret_key_ref"]["name"] == "s3"


def test_a_dry_run_is_checked_by_the_server_and_creates_nothing(
    run: Callable[..., int], operator: Operator, train_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("submit", "train", str(train_yaml), "--dry-run") == 0
    out, err = capsys.readouterr()
    rayjob = yaml.safe_load(out)
    assert rayjob["metadata"]["namespace"] == operator.namespace
    assert rayjob["spec"]["submissionMode"] == "K8sJobMode"  # the server's own default: it has seen it
    assert "nothing was created" in err
    assert operator.rayjobs() == []


def test_a_run_that_is_being_trained_is_not_submitted_again(jobs: KubernetesJobs, operator: Operator) -> None:
    jobs.submit(TRAIN, CLUSTER, "train-demo-1")
    with pytest.raises(ClusterError, match=r"train demo: the job train-demo-1 is at it already .*historay jobs wait"):
        jobs.submit(TRAIN, CLUSTER, "train-demo-2")
    other_run = Stage("train", TrainConfig(run="other", dataset="demo", store="s3://bucket/store"))
    jobs.submit(other_run, CLUSTER, "train-other-1")
    operator.status("train-demo-1", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    jobs.submit(TRAIN, CLUSTER, "train-demo-3")
    assert {view.name for view in jobs.views()} == {"train-demo-1", "train-other-1", "train-demo-3"}


def test_of_eight_submits_at_the_same_moment_at_most_one_stays(jobs: KubernetesJobs, operator: Operator) -> None:
    refused = []

    def submit(number: int) -> None:
        try:
            jobs.submit(TRAIN, CLUSTER, job_name(TRAIN, str(number)))
        except ClusterError as error:
            refused.append(error)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) + len(operator.rayjobs()) == 8
    assert len(operator.rayjobs()) <= 1


def test_what_the_server_does_not_know_is_refused_and_leaves_nothing(
    jobs: KubernetesJobs, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from historay.cluster import kube

    built = kube.build_rayjob
    monkeypatch.setattr(
        kube, "build_rayjob", lambda *args: {**built(*args), "spec": {**built(*args)["spec"], "backofLimit": 1}}
    )
    with pytest.raises(ClusterError, match=r"unknown field .spec\.backofLimit"):
        jobs.submit(TRAIN, CLUSTER, "train-demo-1")
    names = [item.metadata.name for item in operator.core.list_namespaced_config_map(operator.namespace).items]
    assert "train-demo-1" not in names


def test_a_job_whose_acceptance_was_not_heard_keeps_its_settings_and_is_named(
    jobs: KubernetesJobs, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = jobs._custom.create_namespaced_custom_object

    def create_unheard(*arguments: object, **options: object) -> None:
        create(*arguments, **options)
        raise ReadTimeoutError(None, "", "Read timed out.")  # type: ignore[arg-type]

    monkeypatch.setattr(jobs._custom, "create_namespaced_custom_object", create_unheard)
    with pytest.raises(Unreachable, match="may have taken train-demo-1: historay jobs wait train-demo-1 --namespace"):
        jobs.submit(TRAIN, CLUSTER, "train-demo-1")
    assert [rayjob["metadata"]["name"] for rayjob in operator.rayjobs()] == ["train-demo-1"]
    assert operator.core.read_namespaced_config_map("train-demo-1", operator.namespace).data


def test_detach_returns_once_the_job_is_accepted(
    run: Callable[..., int], operator: Operator, train_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("submit", "train", str(train_yaml), "--detach", own=("--", "--epochs", "3")) == 0
    (rayjob,) = operator.rayjobs()
    name = rayjob["metadata"]["name"]
    assert f"next: historay jobs wait {name} --namespace {operator.namespace}" in capsys.readouterr().err
    settings = operator.core.read_namespaced_config_map(name, operator.namespace).data["config.yaml"]
    assert yaml.safe_load(settings)["epochs"] == 3


def test_a_search_is_submitted_with_the_train_settings_that_it_names(
    run: Callable[..., int], operator: Operator, train_yaml: Path, tmp_path: Path
) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({"search": "wide", "train": str(train_yaml), "space": {"lr": [1e-3, 1e-2]}}))
    assert run("submit", "search", str(path), "--detach") == 0
    (rayjob,) = operator.rayjobs()
    name = rayjob["metadata"]["name"]
    settings = operator.core.read_namespaced_config_map(name, operator.namespace).data
    assert yaml.safe_load(settings["config.yaml"])["train"] == "/etc/historay/train.yaml"
    assert yaml.safe_load(settings["train.yaml"])["dataset"] == "demo"
    with pytest.raises(ClusterError, match=f"search wide: the job {name} is at it already"):
        run("submit", "search", str(path), "--detach")


def test_the_command_exits_with_the_job_s_own_status(
    start: Callable[..., "subprocess.Popen[str]"], operator: Operator, train_yaml: Path
) -> None:
    submitted = start("submit", "train", str(train_yaml))
    wait_until(lambda: bool(operator.rayjobs()), 180, "the RayJob")
    name = operator.rayjobs()[0]["metadata"]["name"]
    message = "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):\nLeakError"
    operator.status(name, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message=message)
    _, err = submitted.communicate(timeout=240)
    assert submitted.returncode == 3
    assert (
        f"{name}: the stage failed; the reason is at the end of its log (Job entrypoint command failed with exit code 3" in err
    )


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back_and_what_will_not_run(
    start: Callable[..., "subprocess.Popen[str]"], operator: Operator, tmp_path: Path
) -> None:
    submitted = start("submit", "pipeline", str(_pipeline(tmp_path)))
    assert submitted.stderr is not None
    lines = [submitted.stderr.readline(), submitted.stderr.readline()]
    assert "has not taken it up yet" in lines[1], lines
    submitted.send_signal(signal.SIGINT)
    _, err = submitted.communicate(timeout=240)
    assert submitted.returncode == 130
    name = operator.rayjobs()[0]["metadata"]["name"]
    assert f"{name} goes on; historay jobs wait {name}" in err
    assert "the pipeline ends here; not run: train, evaluate" in err


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("\n", 1)])
def test_ctrl_c_on_a_terminal_asks_first(
    start: Callable[..., "subprocess.Popen[str]"], operator: Operator, train_yaml: Path, answer: str, left: int
) -> None:
    terminal, inside = pty.openpty()
    submitted = start("submit", "train", str(train_yaml), stdin=inside)
    assert submitted.stderr is not None
    submitted.stderr.readline()
    submitted.stderr.readline()
    submitted.send_signal(signal.SIGINT)
    assert any("Cancel it? [y/N]" in line for line in submitted.stderr)
    os.write(terminal, answer.encode())
    submitted.communicate(timeout=240)
    os.close(terminal)
    os.close(inside)
    assert submitted.returncode == 130
    assert len(operator.rayjobs()) == left


def test_list_wait_and_cancel_by_name(
    run: Callable[..., int], jobs: KubernetesJobs, operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.submit(TRAIN, CLUSTER, "train-demo-1")
    operator.status("train-demo-1", jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert run("jobs", "list") == 0
    assert capsys.readouterr().out.splitlines()[3].replace("│", " ").split()[:3] == ["train-demo-1", "train", "running"]
    assert run("jobs", "logs", "train-demo-1") == 0
    assert capsys.readouterr().err == "train-demo-1: no log yet (running)\n"
    operator.status("train-demo-1", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert run("jobs", "wait", "train-demo-1") == 0
    assert capsys.readouterr().err.splitlines()[-1] == "train-demo-1: succeeded"
    assert run("jobs", "cancel", "train-demo-1") == 0
    with pytest.raises(ClusterError, match="has no job train-demo-1; historay jobs list"):
        run("jobs", "wait", "train-demo-1")


def test_jobs_that_have_ended_are_removed_and_make_room_in_the_quota(
    cluster: Cluster,
    run: Callable[..., int],
    jobs: KubernetesJobs,
    operator: Operator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.kubectl("create", "quota", "team", "--hard=count/rayjobs.ray.io=2", "-n", operator.namespace)
    wait_until(lambda: _counted(cluster, operator.namespace), 180, "the quota's first count of RayJobs")
    evaluate, predict = Stage("evaluate", EvaluateConfig(run="demo", store="s3://bucket/store")), Stage("predict", PREDICT)
    jobs.submit(TRAIN, CLUSTER, "train-demo-1")
    jobs.submit(evaluate, CLUSTER, "evaluate-demo-1")
    operator.status("train-demo-1", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    with pytest.raises(ClusterError, match="quota team is full of jobs; historay jobs clean removes those that have ended"):
        jobs.submit(predict, CLUSTER, "predict-1")
    assert run("jobs", "clean") == 0
    assert capsys.readouterr().err == "train-demo-1: removed (succeeded)\n"
    assert [rayjob["metadata"]["name"] for rayjob in operator.rayjobs()] == ["evaluate-demo-1"]
    wait_until(lambda: _accepts(jobs, predict), 180, "room in the quota")


def _counted(cluster: Cluster, namespace: str) -> bool:
    return "count/rayjobs.ray.io" in cluster.get("quota", "team", "-n", namespace).get("status", {}).get("used", {})


def _accepts(jobs: KubernetesJobs, stage: Stage) -> bool:
    """Whether the quota, which is counted every ten seconds, lets it in."""
    try:
        jobs.submit(stage, CLUSTER, "predict-1")
    except ClusterError:
        return False
    return True


def _pipeline(folder: Path, **changed: str) -> Path:
    store = "s3://bucket/store"
    stages = {
        "ingest": {"name": "demo", "source": "s3://bucket/tiles/manifest.csv", "store": store},
        "train": {"run": "demo", "dataset": "demo", "store": store},
        "evaluate": {"run": changed.get("evaluated", "demo"), "store": store},
    }
    for stage, settings in stages.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings))
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({stage: str(folder / f"{stage}.yaml") for stage in stages}))
    return path


def test_a_pipeline_runs_in_order_and_stops_at_the_first_failure(
    start: Callable[..., "subprocess.Popen[str]"], operator: Operator, tmp_path: Path
) -> None:
    submitted = start("submit", "pipeline", str(_pipeline(tmp_path)))

    def stages() -> list[str]:
        return sorted(rayjob["metadata"]["name"].split("-")[0] for rayjob in operator.rayjobs())

    wait_until(lambda: stages() == ["ingest"], 180, "ingest")
    operator.status(operator.rayjobs()[0]["metadata"]["name"], jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    wait_until(lambda: stages() == ["ingest", "train"], 180, "train")
    name = next(rayjob["metadata"]["name"] for rayjob in operator.rayjobs() if rayjob["metadata"]["name"].startswith("train"))
    operator.status(name, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message="exit code 1")
    _, err = submitted.communicate(timeout=240)
    assert submitted.returncode == 1
    assert "the pipeline ends here; not run: evaluate" in err
    assert stages() == ["ingest", "train"]


def test_a_pipeline_whose_stages_do_not_fit_is_refused_before_anything_runs(
    run: Callable[..., int], operator: Operator, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"train.run='demo' and evaluate.run='other'"):
        run("submit", "pipeline", str(_pipeline(tmp_path, evaluated="other")))
    assert operator.rayjobs() == []
