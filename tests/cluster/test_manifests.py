"""The plain manifests below k8s/: accepted by the real server, strict, restricted, bounded, one for each stage."""

import importlib.metadata
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import Cluster
from chart import parse
from processes import wait_until
from raypods import pods

from historay.data.ingest import IngestConfig
from historay.serving.predict_settings import PredictConfig
from historay.training.evaluate import EvaluateConfig
from historay.training.search_settings import SearchConfig, base_config
from historay.training.settings import TrainConfig

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
CONFIGS = {
    "ingest": IngestConfig,
    "train": TrainConfig,
    "search": SearchConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
}
JOBS = sorted(path for path in (K8S / "jobs").glob("*.yaml") if "kind: RayJob" in path.read_text())
FOLDERS = ("base", "dev", "jobs", "overlays/kind", "overlays/kind/jobs", "overlays/gpu", "overlays/gpu/jobs")
Object = dict[str, Any]


def _built(cluster: Cluster, folder: str) -> list[Object]:
    command = [cluster.kubectl_program, "kustomize", K8S / folder]
    return parse(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def _rayjobs(cluster: Cluster, folder: str) -> list[Object]:
    return [item for item in _built(cluster, folder) if item["kind"] == "RayJob"]


@pytest.fixture(scope="module")
def historay_namespace(cluster: Cluster) -> str:
    """The namespace with all that k8s/base puts into it, applied as a user would."""
    cluster.kubectl("apply", "--server-side", "--validate=strict", "-k", str(K8S / "base"))

    def counted() -> bool:
        status = cluster.get("resourcequota", "historay", "-n", "historay").get("status", {})
        return "count/rayjobs.ray.io" in status.get("used", {})

    # The controller looks for new kinds every half minute; until it has counted them, the quota refuses them all.
    wait_until(counted, 180, "the quota's first count of RayJobs")
    return "historay"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_server_takes_every_manifest_field_by_field(cluster: Cluster, namespace: str, folder: str) -> None:
    objects = [_moved(item, namespace) for item in _built(cluster, folder)]
    manifests = yaml.safe_dump_all(objects)
    said = cluster.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=manifests)
    assert said.count("serverside-applied") == len(objects)
    kept = json.loads(cluster.kubectl("get", "-o", "json", "-f", "-", stdin=manifests))
    names = [(item["kind"], item["metadata"]["name"]) for item in kept.get("items", [kept])]
    assert names == [(item["kind"], item["metadata"]["name"]) for item in objects]


def _moved(item: Object, namespace: str) -> Object:
    """The object in a namespace of the test's own."""
    place = {"name": namespace} if item["kind"] == "Namespace" else {"namespace": namespace}
    moved = {**item, "metadata": {**item["metadata"], **place}}
    if "subjects" in item:
        moved["subjects"] = [
            {**subject, **({"namespace": namespace} if "namespace" in subject else {})} for subject in item["subjects"]
        ]
    return moved


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_is_created_listed_and_deleted_as_its_first_lines_say(
    cluster: Cluster, historay_namespace: str, job: Path
) -> None:
    apply = re.search(r"^#   kubectl apply (.*?) && kubectl -n historay wait", job.read_text(), re.MULTILINE)
    assert apply
    files = [str(ROOT / word) if word.startswith("k8s/") else word for word in apply[1].split()]
    cluster.kubectl("apply", "--validate=strict", *files)
    made = cluster.get("rayjob", job.stem, "-n", "historay")
    assert made["spec"]["entrypoint"].split()[:2] == ["historay", job.stem]
    cluster.kubectl("delete", *files)


def test_a_file_holds_one_object_with_its_kind_in_the_name_or_is_an_overlay() -> None:
    for path in K8S.rglob("*.yaml"):
        documents = list(yaml.safe_load_all(path.read_text()))
        assert len(documents) == 1, path
        if path.parent.name in {"base", "dev"} and path.stem != "kustomization":
            assert path.stem.startswith(documents[0]["kind"].lower()), path


def test_every_kustomization_takes_in_every_file_beside_it() -> None:
    for path in K8S.rglob("kustomization.yaml"):
        listed = yaml.safe_load(path.read_text())
        names = {*listed.get("resources", []), *(patch["path"] for patch in listed.get("patches", []))}
        beside = {other.name for other in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert beside <= names, path


def test_every_job_script_has_a_manifest_and_its_settings_are_those_of_its_config(cluster: Cluster, tmp_path: Path) -> None:
    assert {path.stem for path in JOBS} == {
        path.stem for path in (ROOT / "jobs").glob("*.py") if "What a RayJob runs" in path.read_text()
    }
    for folder in ("jobs", "overlays/kind/jobs", "overlays/gpu/jobs"):
        mounted = _mounted(_built(cluster, folder), tmp_path)
        for job in _rayjobs(cluster, folder):
            program, stage, *arguments = shlex.split(job["spec"]["entrypoint"].replace("/etc/historay", str(mounted)))
            assert (program, stage) == ("historay", job["metadata"]["name"])
            config = CONFIGS[stage].from_command_line(arguments, f"historay {stage}")
            if isinstance(config, SearchConfig):
                assert config.resume  # an attempt goes on with what the one before it has left
                config = base_config(config)
            assert config.store.startswith("s3://")


def _mounted(objects: list[Object], folder: Path) -> Path:
    """Writes the files of the one ConfigMap, as the driver finds them below /etc/historay."""
    (config_map,) = (item for item in objects if item["kind"] == "ConfigMap")
    (job,) = (item for item in objects if item["kind"] == "RayJob" and "/etc/historay" in item["spec"]["entrypoint"])
    driver = pods(job["spec"]["rayClusterSpec"])["head"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in driver["containers"][0]["volumeMounts"]}
    named = {volume["configMap"]["name"]: mounts[volume["name"]] for volume in driver["volumes"] if "configMap" in volume}
    assert named == {config_map["metadata"]["name"]: "/etc/historay"}
    for name, text in config_map["data"].items():
        (folder / name).write_text(text.replace("/etc/historay", str(folder)))
    return folder


def test_every_job_ends_is_cleaned_up_and_is_tried_again(cluster: Cluster) -> None:
    for job in _rayjobs(cluster, "jobs"):
        spec = job["spec"]
        assert 0 < spec["activeDeadlineSeconds"] <= 86400
        assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
        assert 1 <= spec["backoffLimit"] <= 3
        assert spec["shutdownAfterJobFinishes"] is True
        assert 60 <= spec["ttlSecondsAfterFinished"] <= 3600
        assert "deletionStrategy" not in spec  # never together with shutdownAfterJobFinishes


def test_every_job_says_how_overlapping_attempts_are_kept_apart() -> None:
    for path in JOBS:
        assert re.search(r"# (Fenced by|Nothing to fence)", path.read_text()), path


def test_ray_in_the_jobs_is_ray_in_the_requirements(cluster: Cluster) -> None:
    versions = {job["spec"]["rayClusterSpec"]["rayVersion"] for job in _rayjobs(cluster, "jobs")}
    assert versions == {importlib.metadata.version("ray")}


# The one stage whose settings do not fit a command line.
SEARCH_SETTINGS = (
    {"name": "config", "configMap": {"name": "STAGE"}},
    {"name": "config", "mountPath": "/etc/historay", "readOnly": True},
)


def test_jobs_differ_in_no_more_than_stage_size_and_deadline(cluster: Cluster) -> None:
    def common(job: Object) -> str:
        text = json.dumps({**job["spec"], "entrypoint": "", "activeDeadlineSeconds": 0, "entrypointNumCpus": 0}, sort_keys=True)
        text = text.replace(f'"{job["metadata"]["name"]}"', '"STAGE"')
        for settings in SEARCH_SETTINGS:
            text = text.replace(f", {json.dumps(settings, sort_keys=True)}", "")
        return re.sub(r'"(min|max)?[rR]eplicas": \d+|"(cpu|memory)": "\w+"', "", text)

    assert len({common(job) for job in _rayjobs(cluster, "jobs")}) == 1


# On the one node of `make kind` that takes pods: kindnet, CoreDNS twice, KubeRay's operator, the trial store.
STAYS = 0.1 + 2 * 0.1 + 0.1 + 0.25


def _cpus(pod: Object) -> float:
    asked = pod["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    return float(asked[:-1]) / 1000 if asked.endswith("m") else float(asked)


@pytest.mark.parametrize("stage", ["ingest", "train", "evaluate"])
def test_a_stage_of_make_kind_fits_a_laptop_of_6_cpus_and_makes_room_for_the_next(cluster: Cluster, stage: str) -> None:
    (job,) = (job for job in _rayjobs(cluster, "overlays/kind/jobs") if job["metadata"]["name"] == stage)
    ray = job["spec"]["rayClusterSpec"]
    (group,) = ray["workerGroupSpecs"]
    workers = group["replicas"] * _cpus(group["template"])
    assert _cpus(ray["headGroupSpec"]["template"]) + workers + _cpus(job["spec"]["submitterPodTemplate"]) + STAYS <= 6
    assert job["spec"]["ttlSecondsAfterFinished"] <= 10  # the next one waits for as long


def _assert_admitted(cluster: Cluster, pod: Object) -> None:
    dry_run = ("create", "-n", "historay", "--dry-run=server", "--validate=strict", "-f", "-")
    said = cluster.kubectl(*dry_run, stdin=json.dumps(pod), check=False)
    assert "created (server dry run)" in said, said


@pytest.mark.parametrize("folder", ["jobs", "overlays/kind/jobs", "overlays/gpu/jobs"])
def test_the_namespace_admits_the_pods_of_every_job(cluster: Cluster, historay_namespace: str, folder: str) -> None:
    cluster.kubectl("wait", "-n", "historay", "--for=create", "serviceaccount/historay-jobs", "--timeout=180s")
    if folder == "overlays/gpu/jobs":
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(K8S / "overlays" / "gpu"))
    for job in _rayjobs(cluster, folder):
        submitter = {"apiVersion": "v1", "kind": "Pod", **job["spec"]["submitterPodTemplate"]}
        submitter["metadata"] = {**submitter["metadata"], "name": "submitter"}
        for pod in (*pods(job["spec"]["rayClusterSpec"]).values(), submitter):
            _assert_admitted(cluster, pod)


def test_the_pods_of_the_trial_store_are_admitted_too(cluster: Cluster, historay_namespace: str) -> None:
    for item in _built(cluster, "overlays/kind"):
        if item["kind"] in {"Deployment", "Job"}:
            template = item["spec"]["template"]
            pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "x", **template["metadata"]}}
            _assert_admitted(cluster, pod)


def test_the_quota_refuses_what_is_too_much(cluster: Cluster, historay_namespace: str) -> None:
    job = yaml.safe_load((K8S / "jobs" / "train.yaml").read_text())
    pod = pods(job["spec"]["rayClusterSpec"])["workers"]
    resources = {"cpu": "65", "memory": "1Gi"}
    pod["spec"]["containers"][0]["resources"] = {"requests": resources, "limits": resources}
    said = cluster.kubectl("create", "-n", "historay", "--dry-run=server", "-f", "-", stdin=json.dumps(pod), check=False)
    assert "exceeded quota: historay, requested: requests.cpu=65" in said


SUBMITTER = {
    "rayjobs.ray.io": {"create", "get", "list", "watch", "delete"},
    "configmaps": {"create", "get", "patch", "delete"},
    "pods": {"get", "list", "watch"},
    "events": {"get", "list", "watch"},
    "pods/log": {"get"},
}
NEVER = (
    "secrets",
    "pods/exec",
    "rayservices.ray.io",
    "rayclusters.ray.io",
    "roles.rbac.authorization.k8s.io",
    "deployments.apps",
)
VERBS = ("create", "get", "list", "watch", "update", "patch", "delete", "deletecollection")


@pytest.mark.parametrize(
    ("user", "groups", "may"),
    [
        ("system:serviceaccount:historay:historay-submitter", [], SUBMITTER),
        ("someone", ["historay-users"], SUBMITTER),
        ("system:serviceaccount:historay:historay-jobs", [], {}),
        ("someone", [], {}),
    ],
    ids=["submitter", "team", "jobs", "stranger"],
)
def test_whoever_submits_may_submit_and_no_more(
    cluster: Cluster, historay_namespace: str, user: str, groups: list[str], may: dict[str, set[str]]
) -> None:
    for resource in (*SUBMITTER, *NEVER):
        name, _, group = resource.partition(".")
        kind, _, part = name.partition("/")
        for verb in VERBS:
            attributes = {"namespace": "historay", "verb": verb, "resource": kind, "group": group, "subresource": part}
            review = {"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}}
            answer = cluster.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
            assert bool(answer["status"]["allowed"]) is (verb in may.get(resource, set())), (verb, resource)
