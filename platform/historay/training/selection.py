"""Selection: the best trials trained again, ranked on validation; the winner alone is judged on test, once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from pydantic import BaseModel, ConfigDict

from historay.data.dataset import open_dataset
from historay.data.folds import make_folds
from historay.errors import NotFound, TrainingError
from historay.evaluation.intervals import LEVEL
from historay.log import log_event
from historay.storage import Store
from historay.training.evaluate import EvaluateConfig, evaluate_run
from historay.training.out_of_fold import pool_out_of_fold
from historay.training.run import Best, run_key
from historay.training.search import train_all
from historay.training.search_settings import to_yaml, trial_config
from historay.training.settings import Monitor, TrainConfig
from historay.training.study import Search, TrialRecord, direction, ranked, search_key


class Finalist(BaseModel):
    """One of the best trials, and what its runs reached on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str  # run of the trial
    number: int
    searched: float  # the trial's own value, by which it was chosen: the highest of many, so too good
    runs: tuple[str, ...]
    values: tuple[float, ...]  # one per run that ended
    failed: dict[str, str]  # reason by run
    mean: float | None
    low: float | None  # 95 % t interval of the mean over seeds or folds; None with fewer than two
    high: float | None


class Selection(BaseModel):
    """The content of selection.json: what was compared with what, who won, and what the test then said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    monitor: Monitor
    num_trials: int  # with a value
    repeats: str  # "seeds" or "folds"
    finalists: tuple[Finalist, ...]  # the best first
    winner: str  # run of its trial
    winner_run: str  # the run that is judged on test
    test: str | None = None  # name@version of the bundle; None: not yet
    report: str | None = None
    figures: dict[str, tuple[float | None, float | None, float | None]] = {}

    @property
    def note(self) -> str:
        """How the model was chosen, in one sentence for its report."""
        return (
            f"CHOSEN AMONG {self.num_trials} candidates on validation: the best {len(self.finalists)} trained again, each with "
            f"{len(self.finalists[0].runs)} {self.repeats}, and only the winner judged on test"
        )


def read_selection(store: Store, search: str) -> Selection | None:
    """Reads selection.json; None if the search has not come that far."""
    try:
        return Selection.model_validate_json(store.read(search_key(search, "selection.json")))
    except NotFound:
        return None


def select(search: Search, trials: Sequence[TrialRecord]) -> Selection:
    """Trains the finalists, ranks them, writes winner.yaml, and judges the winner on test unless that was done.

    What was trained or judged before is not done again. Raises TrainingError if no trial or no finalist has a value.
    """
    store, name = search.store, search.config.search
    selection = read_selection(store, name)
    if selection is None:
        selection = _compare(search, trials)
        _write(store, name, selection)
    if selection.test is None:
        selection = _judge(search, selection)
        _write(store, name, selection)
    return selection


def score(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Returns the mean of runs and its 95 % interval by Student's t; no interval of fewer than two runs."""
    if not values:
        return None, None, None
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def rank(finalists: Sequence[Finalist], monitor: Monitor) -> list[Finalist]:
    """Returns the finalists by their mean, the best first; of equals the one whose trial was better comes first.

    One of which a run failed comes after those of which fewer did: its mean is over the runs, or the folds, that were kind.
    """
    sign = 1.0 if direction(monitor) == "min" else -1.0

    def key(one: Finalist) -> tuple[int, float, float]:
        return len(one.failed), float("inf") if one.mean is None else sign * one.mean, sign * one.searched

    return sorted(finalists, key=key)


def _compare(search: Search, trials: Sequence[TrialRecord]) -> Selection:
    best = ranked(trials, search.monitor)
    if not best:
        raise TrainingError(
            f"search {search.config.search}: none of its {len(trials)} trials has a value; the reasons stand in search.html"
        )
    repeats = _repeats(search)
    plans = {trial.run: _plan(search, trial, repeats) for trial in best[: search.config.num_finalists]}
    failed = train_all(search, [config for plan in plans.values() for config in plan])
    ordered = rank([_finalist(search, trial, plans[trial.run], failed) for trial in best if trial.run in plans], search.monitor)
    for one in ordered:
        log_event("finalist", trial=one.number, mean=one.mean, low=one.low, high=one.high, runs=len(one.values))
    return Selection(
        monitor=search.monitor,
        num_trials=len(best),
        repeats="folds" if search.config.folds else "seeds",
        finalists=tuple(ordered),
        winner=ordered[0].trial,
        winner_run=_winner_run(search, ordered[0], plans[ordered[0].trial]),
    )


def _repeats(search: Search) -> dict[str, dict[str, Any]]:
    """Returns in what the runs of one finalist differ, by the end of their names: the seed, or the fold."""
    config = search.config
    if config.folds:
        dataset = open_dataset(search.store, search.base.dataset)
        references = make_folds(dataset, config.folds, config.seed)
        return {f"fold{fold}": {"dataset": reference} for fold, reference in enumerate(references, start=1)}
    seeds = np.random.SeedSequence(config.seed).generate_state(config.num_seeds) % 2**31
    return {f"seed{number}": {"seed": int(seed)} for number, seed in enumerate(seeds, start=1)}


def _plan(search: Search, trial: TrialRecord, repeats: dict[str, dict[str, Any]]) -> list[TrainConfig]:
    epochs = {} if search.config.final_epochs is None else {"epochs": search.config.final_epochs}
    return [
        trial_config(search.base, {**trial.params, **epochs, **changes}, f"{trial.run}-{end}")
        for end, changes in repeats.items()
    ]


def _finalist(search: Search, trial: TrialRecord, plan: Sequence[TrainConfig], failed: dict[str, str]) -> Finalist:
    runs = tuple(config.run for config in plan)
    ended = [run for run in runs if run not in failed]
    values = tuple(Best.model_validate_json(search.store.read(run_key(run, "best.json"))).value for run in ended)
    if search.config.folds and ended:
        pooled = pool_out_of_fold(search.store, ended)
        search.store.write(search_key(search.config.search, f"out-of-fold/{trial.run}.parquet"), pooled.to_parquet())
    mean, low, high = score(values)
    assert trial.value is not None
    reasons = {run: failed[run] for run in runs if run in failed}
    return Finalist(
        trial=trial.run,
        number=trial.number,
        searched=trial.value,
        runs=runs,
        values=values,
        failed=reasons,
        mean=mean,
        low=low,
        high=high,
    )


def _winner_run(search: Search, winner: Finalist, plan: Sequence[TrainConfig]) -> str:
    """Writes winner.yaml and returns the run to judge: the best seed's, or after folds one on the whole train split."""
    name = search.config.search
    if winner.mean is None:
        raise TrainingError(f"search {name}: no finalist could be trained: {next(iter(winner.failed.values()))}")
    sign = 1.0 if direction(search.monitor) == "min" else -1.0
    ended = [config for config in plan if config.run not in winner.failed]
    best, _ = min(zip(ended, winner.values, strict=True), key=lambda one: sign * one[1])
    settings = best.model_copy(update={"run": f"{name}-winner", "dataset": search.base.dataset})
    said = f"{search.monitor} {winner.mean:.4f} on validation, mean of {len(winner.values)}"
    text = to_yaml(settings, f"historay train winner.yaml\nThe winner of search {name}: {said}.")
    search.store.write(search_key(name, "winner.yaml"), text.encode())
    if not search.config.folds:
        return best.run
    if failed := train_all(search, [settings]):
        raise TrainingError(f"search {name}: the winner could not be trained: {failed[settings.run]}")
    return settings.run


def _judge(search: Search, selection: Selection) -> Selection:
    name = search.config.name or search.config.search
    result = evaluate_run(EvaluateConfig(run=selection.winner_run, store=search.base.store, name=name, notes=(selection.note,)))
    figures = {title: (figure.value, figure.low, figure.high) for title, figure in result.headline.items()}
    return selection.model_copy(update={"test": result.reference, "report": result.report, "figures": figures})


def _write(store: Store, search: str, selection: Selection) -> None:
    store.write(search_key(search, "selection.json"), selection.model_dump_json(indent=2).encode())
