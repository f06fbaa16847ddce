"""Search with Ray Tune and Optuna: each trial is a whole Ray Train run of the training code, ASHA stops the poor ones.

A resume does not go by Tune's own experiment state but by each trial's record in the store (study.py), so that a driver
killed at any moment loses at most what is in flight, and even that goes on from its last checkpoint.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import optuna
import ray
import ray.tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from historay.data.dataset import open_dataset
from historay.errors import ConfigError, NotFound
from historay.log import log_event, setup_logging
from historay.ray_session import connect_ray
from historay.storage import PatientStore, open_store
from historay.training.mlflow_mirror import end_runs
from historay.training.run import read_metrics, read_run, run_key
from historay.training.search_callbacks import EPOCH, OBJECTIVE, Bounds, PruningSearch, Recorder, ReportBest, explained
from historay.training.search_settings import (
    DRIVER_CPUS,
    Params,
    SearchConfig,
    base_config,
    max_concurrent,
    parse_space,
    trial_config,
    trial_run,
)
from historay.training.search_view import Progress, open_view
from historay.training.settings import TrainConfig
from historay.training.study import (
    Search,
    SearchRecord,
    TrialRecord,
    base_settings,
    best_so_far,
    direction,
    known_trials,
    make_sampler,
    num_ended,
    read_search,
    read_trials,
    refuse_other,
    search_key,
)
from historay.training.train import train

_LOOK_EVERY_S = 1.0  # for Ctrl-C and the time
_CANCEL_S = 30.0


class Interrupted(Exception):
    """The search was told to stop, or its time was up, before the finalists were trained."""


def open_search(config: SearchConfig) -> Search:
    """Checks space, train config and data set, and writes search.json with a new attempt, so that an earlier driver stops.

    Raises ConfigError if a search of that name exists with other settings, or is to be begun twice.
    """
    base, space = base_config(config), parse_space(config.space)
    store = PatientStore(open_store(base.store))
    dataset = open_dataset(store, base.dataset)
    dataset.refuse_leaks(base.accept_leaks)
    base = base.model_copy(update={"store": store.uri, "dataset": dataset.reference})
    existing = read_search(store, config.search)
    record = SearchRecord(
        search=config.search,
        space=config.space,
        base=base_settings(base, dataset.reference),
        monitor=base.monitor,
        seed=config.seed,
        attempt=uuid.uuid4().hex,
        created=existing.created if existing else datetime.now(UTC).isoformat(timespec="seconds"),
    )
    refuse_other(existing, record, config, len(read_trials(store, config.search)))
    if config.resume and existing is None:  # as the first attempt of a job finds it
        log_event("search begun", name=config.search, why="nothing to resume in this store")
    store.write(search_key(config.search, "search.json"), record.model_dump_json(indent=2).encode())
    return Search(config, base, space, store, record, time.monotonic() + config.max_hours * 3600)


def run_trials(search: Search) -> list[TrialRecord]:
    """Runs what is left of a search's trials, within its wall time, and returns all, those in flight among them.

    Ctrl-C (or SIGTERM) stops the trials in flight and returns too; a second one ends the process at once.
    """
    config, trials = search.config, read_trials(search.store, search.config.search)
    if num_ended(trials) >= config.max_trials:
        _tidy(search, trials)  # a driver that was killed at the end has not
        return trials
    connect_ray()
    concurrent = concurrency(search)
    in_flight = sum(trial.status == "running" for trial in trials)
    known = f"{num_ended(trials)}/{config.max_trials}"
    log_event("search", name=config.search, trials=known, in_flight=in_flight, at_once=concurrent)
    progress = Progress(config.search, search.monitor, config.max_trials, concurrent, search.deadline)
    progress.trials = {trial.run: trial for trial in trials}
    # Ctrl-C is ours to handle, and what Tune prints is said by our own view.
    os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    view = open_view()
    recorder = Recorder(search, progress, view)
    try:
        with _interruptible() as interrupted:
            stopper = Bounds(lambda: interrupted.is_set() or time.monotonic() > search.deadline)
            _tuner(search, trials, concurrent, recorder, stopper).fit()
    finally:
        view.close()
    trials = read_trials(search.store, config.search)
    _tidy(search, trials)
    return trials


def train_all(search: Search, configs: list[TrainConfig]) -> dict[str, str]:
    """Trains runs to their end, as many at once as there is room for; returns what failed, the reason by run.

    Each has a driver of its own. Without a run that is unfinished, Ray is not even started. Ctrl-C, SIGTERM and the end of
    the search's wall time stop what is in flight, which goes on from its checkpoint the next time, and raise Interrupted.
    """
    waiting, failed = [config for config in configs if not _finished(search, config.run)], dict[str, str]()
    if not waiting:
        return failed
    connect_ray()
    concurrent = concurrency(search)
    remote = ray.remote(num_cpus=DRIVER_CPUS, max_retries=1)(_train_one)
    running: dict[Any, str] = {}
    with _interruptible() as interrupted:
        while waiting or running:
            if interrupted.is_set() or time.monotonic() > search.deadline:
                _cancel(list(running))
                raise Interrupted
            while waiting and len(running) < concurrent:
                config = waiting.pop(0)
                running[remote.remote(config)] = config.run
            ended, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_EVERY_S)
            for done in ended:
                run = running.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    failed[run] = explained(error)
                    log_event("run failed", run=run, error=failed[run])
    return failed


def _cancel(running: list[Any]) -> None:
    """Ends drivers as Ctrl-C would, which takes their workers along; those that do not listen are killed."""
    for force in (False, True):
        for task in running:
            ray.cancel(task, force=force)
        _, running = ray.wait(running, num_returns=len(running), timeout=_CANCEL_S) if running else ([], [])


def _finished(search: Search, run: str) -> bool:
    try:
        return read_run(search.store, run).status == "finished"
    except NotFound:
        return False


def _train_one(config: TrainConfig) -> None:
    setup_logging()
    train(config)


def concurrency(search: Search) -> int:
    """Returns how many trials the cluster holds at once; on one that may still grow, ``max_concurrent`` is taken as it is."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    try:
        return max_concurrent(nodes, search.base, search.config.max_concurrent)
    except ConfigError as error:
        if not (os.environ.get("RAY_ADDRESS") and search.config.max_concurrent):
            raise
        log_event("WARNING waiting for nodes", needs=error)
        return search.config.max_concurrent


def _tuner(search: Search, trials: list[TrialRecord], concurrent: int, recorder: Recorder, stopper: Bounds) -> "ray.tune.Tuner":
    filesystem, root = search.store.arrow()
    return ray.tune.Tuner(
        ray.tune.with_resources(_trainable(search.config.search, search.base), {"CPU": DRIVER_CPUS}),
        tune_config=ray.tune.TuneConfig(
            search_alg=_searcher(search, trials),
            scheduler=_scheduler(search, trials),
            num_samples=search.config.max_trials - num_ended(trials),
            max_concurrent_trials=concurrent,
            reuse_actors=False,  # with True ASHA was seen to hang
        ),
        run_config=ray.tune.RunConfig(
            name=search.record.attempt,
            storage_path=f"{root}/{search_key(search.config.search, 'tune')}",
            storage_filesystem=filesystem,
            # A lost driver or worker is forgiven once, and goes on from its checkpoint; a diverged trial is not worth more.
            failure_config=ray.tune.FailureConfig(max_failures=1),
            callbacks=[recorder],
            stop=stopper,
            verbose=0,
        ),
    )


def _searcher(search: Search, trials: list[TrialRecord]) -> OptunaSearch:
    """Builds Optuna's side: it knows all ended trials and first suggests those that were in flight."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage, mode = optuna.storages.InMemoryStorage(), direction(search.monitor)
    study = optuna.create_study(
        storage=storage, study_name=search.config.search, direction="minimize" if mode == "min" else "maximize"
    )
    study.add_trials(known_trials(trials, search.space))
    return PruningSearch(
        search.space,
        metric=OBJECTIVE,
        mode=mode,
        points_to_evaluate=[trial.params for trial in trials if trial.status == "running"],
        sampler=make_sampler(search.config.seed, len(trials)),
        study_name=search.config.search,
        storage=storage,
    )


def _scheduler(search: Search, trials: list[TrialRecord]) -> Any:
    """Builds ASHA with what earlier trials reached at each rung, so that a resumed search is as strict as one in one go."""
    config = search.config
    epochs = getattr(search.space.get("epochs"), "high", search.base.epochs)
    # The last rung stands before the last epoch: to stop a trial there would save nothing.
    most = max(config.grace_epochs, epochs - 1)
    asha: Any = ASHAScheduler(
        time_attr=EPOCH,
        metric=OBJECTIVE,
        mode=direction(search.monitor),
        max_t=most,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction,
        stop_last_trials=False,
    )
    for trial in trials:
        if trial.status != "running" and trial.curve:
            known = SimpleNamespace(trial_id=trial.run)  # ASHA asks a trial for nothing else
            asha.on_trial_add(None, known)
            for epoch, value in enumerate(trial.curve, start=1):
                asha.on_trial_result(None, known, {EPOCH: epoch, OBJECTIVE: value})
    return asha


def _trainable(search: str, base: TrainConfig) -> Callable[[Params], None]:
    """Returns what a trial's driver does: tell Tune the epochs that its run has, and train on from there."""

    def trial(params: Params) -> None:
        setup_logging()
        run = trial_run(search, params)
        config = trial_config(base, params, run)
        lines = read_metrics(open_store(config.store), run)
        curve = best_so_far([line[config.monitor] for line in lines], config.monitor)
        for epoch, value in enumerate(curve, start=1):
            ray.tune.report({EPOCH: epoch, OBJECTIVE: value})
        report = ReportBest(config.monitor, curve[-1] if curve else None)
        # A fixed number of workers: how many trials fit beside one another was reckoned with it.
        train(config.model_copy(update={"max_failures": 0, "min_workers": None}), [report])

    return trial


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into an event, and lets the second one through."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        interrupted.set()
        restore()
        log_event("search: stopping the trials in flight; once more to end at once", signal=signal.Signals(number).name)

    for number in before:
        signal.signal(number, note)
    try:
        yield interrupted
    finally:
        restore()


def _tidy(search: Search, trials: list[TrialRecord]) -> None:
    """Removes Tune's own state and the checkpoints of ended trials, which nothing goes on from, and ends their mirrors."""
    ended = [trial for trial in trials if trial.status != "running"]
    dropped = [run_key(trial.run, "checkpoints") for trial in ended]
    for prefix in [search_key(search.config.search, "tune"), *dropped]:
        for item in search.store.list(prefix):
            search.store.delete(item.key)
    if search.base.logger == "mlflow":
        end_runs([read_run(search.store, trial.run) for trial in ended if trial.curve])
