"""How a search hears of its trials and speaks to them: the hooks that Ray Tune, Ray Train and Optuna ask for."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import ray.tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch

from historay.errors import TrainingError
from historay.training.run import read_run
from historay.training.search_settings import Params, trial_config, trial_run
from historay.training.search_view import Progress, View
from historay.training.settings import Monitor
from historay.training.study import Search, TrialRecord, best_so_far, read_search, write_trial
from historay.training.train import own_cause

EPOCH = "epoch"
OBJECTIVE = "objective"  # best value of the monitor up to now


class PruningSearch(OptunaSearch):
    """OptunaSearch that never has the same settings in flight twice: two drivers would fight over the one run.

    It forgets a trial that failed, and TPE may try the like again; pruned here, it counts as worse than any other.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._postponed: Any = None  # Optuna's trial that waits for the end of one with the same settings

    def suggest(self, trial_id: str) -> Params | None:
        """Returns what to try next; None while that is being tried, whose result then serves for both."""
        if self._postponed is not None:
            self._ot_trials[trial_id] = self._postponed
        params: Params | None = super().suggest(trial_id)
        others = self._ot_trials.keys() - self._completed_trials - {trial_id}
        if params in [self._ot_trials[other].params for other in others]:
            self._postponed = self._ot_trials.pop(trial_id)
            return None
        self._postponed = None
        return params

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result, error=False)


class ReportBest(TuneReportCallback):
    """Tells Tune of each epoch with the best value up to then, since a run keeps its best epoch's weights."""

    def __init__(self, monitor: Monitor, best: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.monitor = monitor
        self.values = [] if best is None else [best]

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        found = metrics[0]
        self.values.append(found[self.monitor])
        best = best_so_far(self.values, self.monitor)[-1]
        super().after_report(run_context, [{EPOCH: found["epoch"], OBJECTIVE: best}], checkpoint)


class Bounds(ray.tune.Stopper):
    """Stops the whole search when told to, and no single trial."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self.over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.over()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles all it is given, for a restore of its own that we do not use


class Recorder(ray.tune.Callback):
    """Writes each trial's record when it starts and when it ends, and keeps what is shown up to date."""

    def __init__(self, search: Search, progress: Progress, view: View) -> None:
        self.search, self.progress, self.view = search, progress, view
        self.began: dict[str, float] = {}  # by Tune's id of a trial
        self.runs: set[str] = set()  # begun by this driver

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        current = read_search(self.search.store, self.search.config.search)
        if current is None or current.attempt != self.search.record.attempt:
            raise TrainingError(
                f"another driver has taken over search {self.search.config.search}; this one stops, nothing is lost"
            )
        if trial.trial_id in self.began:
            return  # tried again after a failure
        self.began[trial.trial_id] = time.monotonic()
        run = trial_run(self.search.config.search, trial.config)
        self._keep(self._started(run, trial.config))
        self.runs.add(run)
        self.view.update(self.progress)

    def _started(self, run: str, params: Params) -> TrialRecord:
        """Returns the record of a trial that starts: a new one, one left in flight, or one that was suggested before."""
        known = self.progress.trials.get(run)
        if known is None:
            number = max((one.number for one in self.progress.trials.values()), default=-1) + 1
            started = datetime.now(UTC).isoformat(timespec="seconds")
            return TrialRecord(number=number, run=run, params=params, status="running", started=started)
        left_in_flight = known.status == "running" and run not in self.runs
        return known if left_in_flight else known.model_copy(update={"times": known.times + 1})

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        record = self._record(trial)
        curve = (*record.curve[: result[EPOCH] - 1], result[OBJECTIVE])
        self.progress.trials[record.run] = record.model_copy(update={"curve": curve, "seconds": self._seconds(trial)})

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._record(trial)
        whole = trial_config(self.search.base, record.params, record.run)
        finished = len(record.curve) >= whole.epochs or read_run(self.search.store, record.run).status == "finished"
        status = "complete" if finished else "stopped"
        self._end(trial, {"status": status})

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, {"status": "failed", "error": explained(trial.get_pickled_error())})

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.view.update(self.progress)

    def _record(self, trial: Trial) -> TrialRecord:
        return self.progress.trials[trial_run(self.search.config.search, trial.config)]

    def _seconds(self, trial: Trial) -> float:
        return round(time.monotonic() - self.began[trial.trial_id], 2)

    def _end(self, trial: Trial, how: dict[str, str]) -> None:
        ended = self._record(trial).model_copy(update={**how, "seconds": self._seconds(trial)})
        self._keep(ended)
        self.view.ended(self.progress, ended)

    def _keep(self, record: TrialRecord) -> None:
        write_trial(self.search.store, self.search.config.search, record)
        self.progress.trials[record.run] = record


def explained(error: BaseException | None) -> str:
    """Returns our own error's message if it is one of ours at the bottom, else the kind and text of what came."""
    own = own_cause(error)
    return str(own) if own is not None else f"{type(error).__name__}: {error}"
