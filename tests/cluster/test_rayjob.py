"""The RayJob as a mapping: what follows from which setting."""

from importlib.metadata import version
from typing import Any

import pytest
import yaml

from historay.cluster.rayjob import OUTPUT_LABEL, build_config_map, build_rayjob
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage
from historay.data.ingest import IngestConfig
from historay.training.evaluate import EvaluateConfig
from historay.training.search_settings import SearchConfig
from historay.training.settings import TrainConfig

STORE = "s3://bucket/store"
TRAIN = Stage("train", TrainConfig(run="demo", dataset="demo", store=STORE, lr=2e-3))


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    return [template["spec"] for template in [*templates, rayjob["spec"]["submitterPodTemplate"]]]


@pytest.mark.parametrize(
    "stage",
    [
        TRAIN,
        Stage("ingest", IngestConfig(name="demo", source="s3://b/manifest.csv", store=STORE, mpp=0.5)),
        Stage("evaluate", EvaluateConfig(run="demo", store=STORE)),
    ],
)
def test_the_settings_that_travel_are_those_that_were_checked(stage: Stage) -> None:
    (text,) = build_config_map(stage, "job")["data"].values()
    assert type(stage.config).from_mapping(yaml.safe_load(text), "config.yaml") == stage.config


def test_a_search_travels_with_its_train_settings_and_goes_on_with_what_an_attempt_has_left() -> None:
    search = SearchConfig(search="demo", train="train.yaml", space={"lr": {"low": 1e-4, "high": 1e-2, "log": True}})
    stage = Stage("search", search, TRAIN.config)
    job, travelled = build_rayjob(stage, SubmitConfig(), "job"), build_config_map(stage, "job")["data"]
    (mount,) = (mount for mount in pods(job)[0]["containers"][0]["volumeMounts"] if mount["name"] == "config")
    there = SearchConfig.from_mapping(yaml.safe_load(travelled["config.yaml"]), "config.yaml")
    assert there == search.model_copy(update={"train": f"{mount['mountPath']}/train.yaml", "resume": True})
    assert TrainConfig.from_mapping(yaml.safe_load(travelled["train.yaml"]), "train.yaml") == TRAIN.config
    assert "entrypointNumCpus" not in job["spec"]  # a whole worker would be lost to the trials


def test_the_cluster_s_ray_is_the_one_that_the_image_was_locked_with() -> None:
    assert build_rayjob(TRAIN, SubmitConfig(), "job")["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_an_ending_is_set_for_all_that_could_go_on_for_ever() -> None:
    spec = build_rayjob(TRAIN, SubmitConfig(deadline_h=1.5, start_deadline_min=10, retries=2), "job")["spec"]
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"], spec["backoffLimit"]) == (5400, 600, 2)
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


def test_a_driver_that_computes_stands_on_a_worker_and_others_on_the_head() -> None:
    cluster = SubmitConfig(cpus=6, gpus=1)
    evaluate = build_rayjob(Stage("evaluate", EvaluateConfig(run="demo", store=STORE)), cluster, "job")["spec"]
    assert (evaluate["entrypointNumCpus"], evaluate["entrypointNumGpus"]) == (6, 1)
    assert "entrypointNumCpus" not in build_rayjob(TRAIN, cluster, "job")["spec"]


def test_gpus_stand_on_the_workers_alone_and_tolerate_the_usual_taint() -> None:
    head, worker, submitter = pods(build_rayjob(TRAIN, SubmitConfig(gpus=2), "job"))
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert all("nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"] for pod in (head, submitter))
    assert worker["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert all("tolerations" not in pod for pod in (head, submitter))  # they would hold a node that is kept for GPUs


def test_gpus_come_with_the_image_that_can_use_them_unless_one_is_named() -> None:
    def images(**settings: Any) -> set[str]:
        return {pod["containers"][0]["image"] for pod in pods(build_rayjob(TRAIN, SubmitConfig(**settings), "job"))}

    assert images() == {f"historay:{version('historay')}"}
    assert images(gpus=1) == {f"historay:{version('historay')}-gpu"}
    assert images(gpus=1, image="registry/ours:7") == {"registry/ours:7"}


def test_queue_priority_account_and_claim_reach_every_pod_that_needs_them() -> None:
    cluster = SubmitConfig(queue="team", priority="low", service_account="s3-reader", claim="tiles")
    rayjob = build_rayjob(TRAIN, cluster, "job")
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert {pod["priorityClassName"] for pod in pods(rayjob)} == {"low"}
    assert {pod["serviceAccountName"] for pod in pods(rayjob)} == {"s3-reader"}
    for pod in pods(rayjob)[:2]:
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "tiles"}} in pod["volumes"]


def test_no_secret_s_value_is_in_the_objects_and_its_name_is() -> None:
    cluster = SubmitConfig(env_from_secret=("s3", "TOKEN=other/key"))
    container = pods(build_rayjob(TRAIN, cluster, "job"))[1]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    reference = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "other", "key": "key"}}}
    assert reference in container["env"]


def test_the_pods_share_no_mapping_that_a_change_to_one_could_leak_through() -> None:
    rayjob = build_rayjob(TRAIN, SubmitConfig(), "job")
    head, worker, _ = pods(rayjob)
    head["containers"][0]["resources"]["limits"]["cpu"] = "99"
    assert head["containers"][0]["resources"]["requests"]["cpu"] != "99"
    assert worker["containers"][0]["resources"]["limits"]["cpu"] != "99"


def test_the_label_by_which_twins_are_found_is_on_job_and_settings() -> None:
    labels = [build(TRAIN) for build in (lambda s: build_config_map(s, "a"), lambda s: build_rayjob(s, SubmitConfig(), "a"))]
    assert labels[0]["metadata"]["labels"][OUTPUT_LABEL] == labels[1]["metadata"]["labels"][OUTPUT_LABEL]
