"""What a search hears of its trials, and what it then suggests."""

import optuna
from optuna.distributions import CategoricalDistribution

from historay.training.search_callbacks import OBJECTIVE, PruningSearch


def searching(choices: list[float]) -> tuple[PruningSearch, optuna.Study]:
    study = optuna.create_study(study_name="s", storage=optuna.storages.InMemoryStorage())
    space = {"lr": CategoricalDistribution(choices)}
    sampler = optuna.samplers.RandomSampler(seed=0)
    searcher = PruningSearch(space, metric=OBJECTIVE, mode="min", sampler=sampler, study_name="s", storage=study._storage)
    return searcher, study


def test_the_same_settings_are_not_tried_twice_at_once_but_once_the_first_is_known() -> None:
    searcher, study = searching([0.1])
    assert searcher.suggest("a") == {"lr": 0.1}
    assert searcher.suggest("b") is None
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a", {OBJECTIVE: 0.5, "training_iteration": 1})
    assert searcher.suggest("d") == {"lr": 0.1}
    searcher.on_trial_complete("d", {OBJECTIVE: 0.5, "training_iteration": 1})
    assert [trial.value for trial in study.trials] == [0.5, 0.5], "none that was put off is left behind"


def test_a_trial_that_failed_is_pruned_so_that_its_like_is_avoided() -> None:
    searcher, study = searching([0.1])
    searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.PRUNED]
