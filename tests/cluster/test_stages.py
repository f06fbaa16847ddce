"""What a stage is called elsewhere, and what is refused before anything travels."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from historay.cli import _STAGES
from historay.cluster.commands import submit
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage, check_pipeline, check_stage, job_name, output_id
from historay.data.ingest import IngestConfig
from historay.errors import ConfigError
from historay.serving.predict_settings import PredictConfig
from historay.training.evaluate import EvaluateConfig
from historay.training.search_settings import SearchConfig
from historay.training.settings import TrainConfig

STORE = "s3://bucket/store"


def training(**settings: Any) -> Stage:
    return Stage("train", TrainConfig(**{"run": "demo", "dataset": "demo", "store": STORE, **settings}))


def searching(**settings: Any) -> Stage:
    search = SearchConfig(search="demo", train="train.yaml", space={"lr": [1e-3, 1e-2]})
    return Stage("search", search, TrainConfig(**{"run": "demo", "dataset": "demo", "store": STORE, **settings}))


def predicting(**settings: Any) -> Stage:
    return Stage("predict", PredictConfig(**{"images": ("s3://b/t",), "model": "demo", "store": STORE, **settings}))


def submitting(**settings: Any) -> SubmitConfig:
    return SubmitConfig.from_mapping(settings, "historay submit")


@given(run=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,80}", fullmatch=True), token=st.from_regex(r"[0-9a-f]{6}", fullmatch=True))
def test_every_run_gives_a_name_that_kuberay_takes(run: str, token: str) -> None:
    name = job_name(training(run=run), token)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)  # a DNS-1035 label
    assert len(name) <= 47
    assert name.startswith("train-")
    assert name.endswith(f"-{token}")


def test_two_jobs_share_an_output_only_if_they_would_write_the_same_thing() -> None:
    assert output_id(training(epochs=3)) == output_id(training(epochs=4))
    others = [
        training(run="b"),
        training(store="s3://bucket/other"),
        searching(),
        searching(store="s3://bucket/other"),
        Stage("evaluate", EvaluateConfig(run="demo", store=STORE)),
    ]
    assert len({output_id(stage) for stage in [training(), *others]}) == 6
    assert output_id(predicting()) is None
    assert output_id(predicting(out="s3://b/a")) == output_id(predicting(out="s3://b/a", model="other"))
    assert output_id(predicting(out="s3://b/a")) != output_id(predicting(out="s3://b/b"))


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        (training(store="historay-store"), "store='historay-store'"),
        (training(store="/database"), "store='/database'"),
        (searching(store="historay-store"), "search: store='historay-store'"),
        (Stage("ingest", IngestConfig(name="a", source="tiles/manifest.csv", store=STORE)), "source='tiles/manifest.csv'"),
        (predicting(images=("s3://b/t", "a.jpg")), "images='a.jpg'"),
        (predicting(out="predictions"), "out='predictions'"),
    ],
)
def test_a_path_that_no_pod_sees_is_refused_by_name(stage: Stage, named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        check_stage(stage, submitting(claim="data"))


@pytest.mark.parametrize(
    ("space", "train", "said"),
    [
        ({"lrr": [1, 2]}, {}, "search.yaml: space.*unknown train setting lrr; there are model"),
        ({"lr": [1e-3, 1e-2]}, {"epochs": 0}, "train.yaml: epochs=0: Input should be greater than or equal to 1"),
        ({"lr": [1e-3, 1e-2]}, {"dataset": "demo", "store": "here"}, "search: store='here' is a path of this machine"),
    ],
)
def test_both_files_of_a_search_are_checked_before_anything_travels(
    tmp_path: Path, space: dict[str, Any], train: dict[str, Any], said: str
) -> None:
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({"dataset": "demo", **train}))
    search = {"search": "s", "train": str(tmp_path / "train.yaml"), "space": space}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search))
    with pytest.raises(ConfigError, match=said):
        submit(["search", str(tmp_path / "search.yaml")], _STAGES)


def test_a_path_on_the_claim_and_any_path_of_a_plain_ray_cluster_are_taken() -> None:
    check_stage(training(store="/data/store"), submitting(claim="data"))
    check_stage(training(store="/mnt/store"), submitting(address="http://127.0.0.1:8265"))


@pytest.mark.parametrize(
    ("stage", "cluster", "said"),
    [
        (
            training(num_workers=16),
            {"workers": 2, "cpus": 4},
            "need 16 CPUs (0 of them for drivers), and workers=2 with cpus=4 give 8",
        ),
        (training(cpus_per_worker=6), {"workers": 4, "cpus": 4}, "cpus_per_worker=6"),
        (training(num_workers=4, use_gpu=True), {"workers": 3, "gpus": 1}, "need 4 GPUs, and workers=3 with gpus=1 give 3"),
        (training(), {"gpus": 1}, "the GPUs would idle"),
        (predicting(out="s3://b/o", num_workers=3), {"workers": 1, "cpus": 4}, "need 6 CPUs (0 of them for drivers)"),
        (predicting(out="s3://b/o"), {"gpus": 1}, "the GPUs would idle"),
        (searching(num_workers=8), {"workers": 2, "cpus": 4}, "need 9 CPUs (1 of them for drivers)"),
    ],
)
def test_a_run_that_would_wait_for_ever_or_waste_gpus_is_refused(stage: Stage, cluster: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_stage(stage, submitting(**cluster))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": ("NOVALUE",)}, "expected NAME=value"),
        ({"env_from_secret": ("A=b",)}, "expected SECRET or NAME=SECRET/KEY"),
        ({"memory": "8GB"}, "memory='8GB'"),
        ({"queue": "Team_A"}, "queue='Team_A'"),
        ({"address": "127.0.0.1:8265"}, "expected the dashboard's http://HOST:8265"),
        ({"address": "http://h:8265", "queue": "team"}, "only Kubernetes knows queue"),
        ({"address": "http://h:8265", "dry_run": True}, "only Kubernetes knows dry_run"),
    ],
)
def test_settings_that_cannot_hold_are_refused_with_their_value(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        submitting(**settings)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": {"dataset": "other@1"}}, "ingest.name='demo' and train.dataset='other'"),
        ({"train": {"store": "s3://b/else"}}, "ingest.store='s3://bucket/store' and train.store='s3://b/else'"),
        ({"evaluate": {"store": "s3://b/else"}}, "train.store='s3://bucket/store' and evaluate.store='s3://b/else'"),
        ({"evaluate": {"run": "other"}}, "train.run='demo' and evaluate.run='other'"),
    ],
)
def test_a_pipeline_must_hang_together(changed: dict[str, dict[str, str]], said: str) -> None:
    ingest = Stage("ingest", IngestConfig(name="demo", source="s3://b/t/manifest.csv", store=STORE))
    train = training(**changed.get("train", {}))
    evaluate = Stage("evaluate", EvaluateConfig(**{"run": "demo", "store": STORE, **changed.get("evaluate", {})}))
    check_pipeline([ingest, training(), Stage("evaluate", EvaluateConfig(run="demo", store=STORE))])
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_pipeline([ingest, train, evaluate])


def test_a_few_images_are_predicted_by_the_driver_and_millions_by_workers_that_fill_the_cluster() -> None:
    assert predicting().computes_in_driver
    check_stage(predicting(num_workers=99), submitting(workers=1, cpus=1))
    assert not predicting(out="s3://b/o").computes_in_driver
    check_stage(predicting(out="s3://b/o", num_workers=4, cpus_per_worker=2), submitting(workers=2, cpus=4))


def test_a_prediction_is_named_by_the_end_of_its_output_alone() -> None:
    assert job_name(predicting(out="s3://hospital/ward-7/monday/"), "abcdef") == "predict-monday-abcdef"
