"""A search space is checked against the train config before anything runs, and trials never wait for each other's workers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from historay.config import read_yaml
from historay.errors import ConfigError
from historay.training.search_settings import (
    DRIVER_CPUS,
    SearchConfig,
    base_config,
    max_concurrent,
    parse_space,
    to_yaml,
    trial_config,
    trial_run,
)
from historay.training.settings import TrainConfig

BASE = TrainConfig(run="s", dataset="d@1", num_workers=1)


def test_ranges_and_choices_become_the_distributions_that_they_say() -> None:
    space = parse_space(
        {
            "lr": {"low": "1e-4", "high": 1e-2, "log": True},
            "dropout": {"low": 0, "high": 0.5},
            "epochs": {"low": 2, "high": 8, "step": 2},
            "ema_decay": {"low": 0.9, "high": 0.99},
            "optimizer": ["sgd", "adamw"],
            "clip_norm": [None, 1.0],
        }
    )
    assert space == {
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "epochs": IntDistribution(2, 8, step=2),
        "ema_decay": FloatDistribution(0.9, 0.99),
        "optimizer": CategoricalDistribution(["sgd", "adamw"]),
        "clip_norm": CategoricalDistribution([None, 1.0]),
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space is empty"),
        ({"learning_rate": [1, 2]}, "unknown train setting learning_rate; there are model, epochs"),
        ({"dataset": ["a", "b"]}, "dataset is the same for all trials"),
        ({"seed": [1, 2]}, "seed is the same for all trials"),
        ({"lr": [0.1]}, r"lr=\[0\.1\]: a choice needs at least two values"),
        ({"lr": {"low": 0.0, "high": 0.1}}, "lr=0.0: Input should be greater than 0"),
        ({"lr": {"low": 0.1, "high": 0.01}}, "lr: low=0.1 and high=0.01: low must be below high"),
        ({"weight_decay": {"low": 0, "high": 0.1, "log": True}}, "above 0 with log"),
        ({"lr": {"low": 1e-3, "high": 1e-1, "log": True, "step": 1e-3}}, "log and step=0.001 exclude each other"),
        ({"lr": {"low": 1e-3, "high": 1e-1, "scale": "log"}}, "give a list of choices, or low and high"),
        ({"lr": {"low": 1e-3, "high": 1e-1, "log": "yes"}}, "log='yes': true or false"),
        ({"epochs": {"low": 1.5, "high": 3}}, "epochs=1.5: Input should be a valid integer"),
        ({"optimizer": ["sgd", "lion"]}, "optimizer='lion': Input should be 'sgd', 'adam' or 'adamw'"),
        ({"model": {"low": 1, "high": 2}}, "model=1: Input should be a valid string"),
        ({"bf16": {"low": False, "high": True}}, "bf16 is not a number"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_field_and_value(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space(space)


def test_a_combination_that_does_not_fit_together_is_refused_when_the_trial_is_built() -> None:
    with pytest.raises(ConfigError, match=r"warmup_epochs=3\.0 and epochs=2"):
        trial_config(BASE, {"warmup_epochs": 3.0, "epochs": 2}, "s-1")


def test_the_same_settings_are_the_same_run_in_any_order_and_others_are_another() -> None:
    assert trial_run("s", {"lr": 0.1, "epochs": 3}) == trial_run("s", {"epochs": 3, "lr": 0.1})
    assert trial_run("s", {"lr": 0.1, "epochs": 3}) != trial_run("s", {"lr": 0.1, "epochs": 4})


def test_the_yaml_of_a_config_is_read_back_as_the_same_config(tmp_path: Any) -> None:
    config = trial_config(BASE, {"lr": 0.0123, "clip_norm": 1.5, "accept_leaks": ("patient",)}, "s-1")
    path = tmp_path / "winner.yaml"
    path.write_text(to_yaml(config, "historay train winner.yaml\nthe winner"))
    assert path.read_text().startswith("# historay train winner.yaml\n# the winner\n")
    assert TrainConfig.from_yaml(str(path)) == config


def test_a_search_reads_its_yaml_with_flags_on_top(tmp_path: Any) -> None:
    (tmp_path / "train.yaml").write_text("dataset: d\nepochs: 3\nnum_workers: 1\n")
    (tmp_path / "search.yaml").write_text(
        f"search: s\ntrain: {tmp_path}/train.yaml\nspace:\n  lr: {{low: 1.0e-4, high: 1.0e-2, log: true}}\n"
    )
    config = SearchConfig.from_command_line([str(tmp_path / "search.yaml"), "--max-trials", "7", "--resume"], "historay search")
    assert (config.max_trials, config.resume, config.space) == (7, True, read_yaml(str(tmp_path / "search.yaml"))["space"])
    assert base_config(config) == TrainConfig(run="s", dataset="d", epochs=3, num_workers=1)


def nodes(*cpus: float, gpus: float = 0) -> list[dict[str, float]]:
    return [{"CPU": each, "GPU": gpus} for each in cpus]


@pytest.mark.parametrize(
    ("there", "workers", "cpus", "expected"),
    [
        (nodes(4), 1, 1, 3),
        (nodes(4), 2, 1, 1),
        (nodes(8), 1, 1, 7),
        (nodes(8), 2, 2, 1),
        (nodes(0, 8, 8), 4, 1, 3),
        (nodes(4, 4), 1, 4, 1),
    ],
)
def test_as_many_trials_run_at_once_as_have_room(there: list[dict[str, float]], workers: int, cpus: int, expected: int) -> None:
    config = BASE.model_copy(update={"num_workers": workers, "cpus_per_worker": cpus})
    assert max_concurrent(there, config, None) == expected
    assert max_concurrent(there, config, 1) == 1


def test_gpus_bound_the_trials_where_they_are_scarcer_than_cpus() -> None:
    config = BASE.model_copy(update={"use_gpu": True, "num_workers": 2})
    assert max_concurrent(nodes(16, 16, gpus=4), config, None) == 4


@pytest.mark.parametrize(("there", "workers"), [(nodes(2), 2), (nodes(1), 1), ([], 1), (nodes(3, 3), 6)])
def test_no_room_for_one_trial_is_said_with_what_it_needs_and_what_there_is(
    there: list[dict[str, float]], workers: int
) -> None:
    with pytest.raises(ConfigError, match=rf"one trial needs {workers}\.1 CPU .*lower num_workers"):
        max_concurrent(there, BASE.model_copy(update={"num_workers": workers}), None)


@given(
    cpus=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    workers=st.integers(1, 3),
    each=st.integers(1, 4),
    places=st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_all_trials_place_their_workers_wherever_their_drivers_stand(
    cpus: list[int], workers: int, each: int, places: list[int]
) -> None:
    config = BASE.model_copy(update={"num_workers": workers, "cpus_per_worker": each})
    try:
        trials = max_concurrent(nodes(*cpus), config, None)
    except ConfigError:
        return
    left = [float(node) for node in cpus]
    for place in places[:trials]:
        fitting = [node for node in range(len(left)) if left[node] >= DRIVER_CPUS]
        left[fitting[place % len(fitting)]] -= DRIVER_CPUS
    assert sum(int((node + 1e-9) // each) for node in left) >= trials * workers
