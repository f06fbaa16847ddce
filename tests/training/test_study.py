"""What a resumed search knows of the trials before it is what the first one knew."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.study import create_study
from optuna.trial import TrialState

from historay.errors import ConfigError
from historay.storage import LocalStore
from historay.training.search_settings import SearchConfig
from historay.training.settings import TrainConfig
from historay.training.study import (
    SearchRecord,
    TrialRecord,
    base_settings,
    best_so_far,
    known_trials,
    make_sampler,
    num_ended,
    ranked,
    read_trials,
    refuse_other,
    write_trial,
)

SPACE = {"lr": FloatDistribution(1e-4, 1e-1, log=True)}
CONFIG = SearchConfig(search="s", train="train.yaml", space={"lr": [1e-3, 1e-2]})
BASE = TrainConfig(run="s", dataset="d", num_workers=1)


def trial(number: int, status: str = "complete", curve: tuple[float, ...] = (0.5,), **changes: Any) -> TrialRecord:
    values = {"number": number, "run": f"s-{number}", "params": {"lr": 0.01}, "status": status, "curve": curve}
    return TrialRecord(**{**values, "started": "2026-01-01T00:00:00+00:00", **changes})


def record(**changes: Any) -> SearchRecord:
    values = {"search": "s", "space": {"lr": [1, 2]}, "base": base_settings(BASE, "d@1"), "monitor": "val_auc", "seed": 0}
    return SearchRecord(**{**values, "attempt": "a", "created": "2026-01-01T00:00:00+00:00", **changes})


def test_trials_come_back_from_the_store_in_the_order_of_their_start(store: LocalStore) -> None:
    written = [trial(number, run=f"s-{name}") for number, name in enumerate("cab")]
    for one in written[::-1]:
        write_trial(store, "s", one)
    assert read_trials(store, "s") == written


def test_optuna_learns_of_all_that_ended_and_takes_a_failed_one_for_the_worst() -> None:
    trials = [trial(0), trial(1, "stopped", (0.3, 0.4)), trial(2, "failed", (0.9,)), trial(3, "running", ())]
    known = known_trials(trials, SPACE)
    assert [(one.state, one.value) for one in known] == [
        (TrialState.COMPLETE, 0.5),
        (TrialState.COMPLETE, 0.4),
        (TrialState.PRUNED, None),
    ]
    study = create_study(direction="maximize")
    study.add_trials(known)
    assert study.best_value == 0.5


def test_a_suggestion_that_repeats_an_ended_trial_counts_and_one_in_flight_does_not() -> None:
    assert num_ended([trial(0, times=3), trial(1, "failed"), trial(2, "running"), trial(3, "running", times=2)]) == 5


def test_a_resumed_search_draws_something_else_than_what_was_drawn_before() -> None:
    def first(num_known: int) -> float:
        study = create_study(sampler=make_sampler(0, num_known))
        return float(study.ask(SPACE).params["lr"])  # type: ignore[arg-type]

    assert first(0) == first(0)
    assert first(0) != first(5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_the_best_up_to_an_epoch_is_the_best_of_the_epochs_up_to_it(values: list[float]) -> None:
    for monitor, choose in (("val_auc", max), ("val_loss", min)):
        assert best_so_far(values, monitor) == tuple(choose(values[: end + 1]) for end in range(len(values)))  # type: ignore[arg-type]


def test_trials_are_ranked_by_value_and_equal_ones_by_age() -> None:
    trials = [trial(0, curve=(0.5,)), trial(1, curve=(0.7,)), trial(2, curve=(0.7,)), trial(3, "failed", (0.9,))]
    assert [one.number for one in ranked(trials, "val_auc")] == [1, 2, 0]
    assert [one.number for one in ranked(trials, "val_loss")] == [0, 1, 2]


def test_a_search_is_begun_once_and_resumed_at_will() -> None:
    resumed = CONFIG.model_copy(update={"resume": True})
    refuse_other(None, record(), CONFIG, 0)
    refuse_other(None, record(), resumed, 0)  # each attempt of a job says --resume, the first one too
    refuse_other(record(), record(attempt="b"), resumed, 3)
    with pytest.raises(ConfigError, match="exists with 3 of 20 trials; go on with --resume"):
        refuse_other(record(), record(), CONFIG, 3)


def test_a_search_with_other_settings_is_refused_and_one_with_more_room_is_not() -> None:
    resumed = CONFIG.model_copy(update={"resume": True})
    moved = BASE.model_copy(update={"cpus_per_worker": 4, "store": "s3://elsewhere", "logger": "mlflow"})
    refuse_other(record(), record(base=base_settings(moved, "d@1")), resumed, 3)
    younger = {name: value for name, value in base_settings(BASE, "d@1").items() if name != "stain_normalisation"}
    refuse_other(record(base=younger), record(), resumed, 3)  # begun before there was that setting
    longer = BASE.model_copy(update={"epochs": 30})
    with pytest.raises(ConfigError, match="epochs was 10, now 30; space was"):
        refuse_other(record(), record(base=base_settings(longer, "d@1"), space={"lr": [1, 3]}), resumed, 3)
