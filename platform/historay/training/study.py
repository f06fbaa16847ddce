"""A search in the store: what it is, one record per trial, and what Optuna and ASHA learn from the records on a resume.

``searches/<search>/`` holds search.json (SearchRecord), trials/<run>.json (TrialRecord), finals.json, search.html and
winner.yaml. Optuna's own study lives in memory: it is made again from the records, so that folder and bucket work alike.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict

from historay.errors import ConfigError, NotFound
from historay.storage import Store
from historay.training.search_settings import Params, SearchConfig
from historay.training.settings import MAY_CHANGE, Monitor, TrainConfig

Status = Literal["running", "complete", "stopped", "failed"]
_STARTUP_TRIALS = 10  # drawn at random before TPE has enough to go by (Optuna's default)


class SearchRecord(BaseModel):
    """The content of search.json: what is searched; two calls may only differ in how much and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search: str
    space: dict[str, Any]
    base: dict[str, Any]  # TrainConfig, without where it runs
    monitor: Monitor
    seed: int
    attempt: str  # of the driver that may write
    created: str  # ISO 8601, UTC


class TrialRecord(BaseModel):
    """The content of one trials/<run>.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int  # in the order of their start, from 0
    run: str
    params: Params
    status: Status
    curve: tuple[float, ...] = ()  # best value of the monitor up to each epoch
    error: str | None = None
    times: int = 1  # suggested: in a small space Optuna repeats itself, and then the run is there already
    started: str  # ISO 8601, UTC
    seconds: float = 0.0

    @property
    def value(self) -> float | None:
        """The trial's result: the best value of the monitor over its epochs; none if it failed or has none yet."""
        return self.curve[-1] if self.curve and self.status != "failed" else None


class Search(NamedTuple):
    """A search that is open in this process."""

    config: SearchConfig
    base: TrainConfig  # with the store's address and the data set's version
    space: dict[str, BaseDistribution]
    store: Store
    record: SearchRecord
    deadline: float  # of time.monotonic()

    @property
    def monitor(self) -> Monitor:
        """What trials are judged by."""
        return self.base.monitor


def search_key(search: str, name: str) -> str:
    """Returns the key of a search's file."""
    return f"searches/{search}/{name}"


def read_search(store: Store, search: str) -> SearchRecord | None:
    """Reads search.json; None if the search is new."""
    try:
        return SearchRecord.model_validate_json(store.read(search_key(search, "search.json")))
    except NotFound:
        return None


def read_trials(store: Store, search: str) -> list[TrialRecord]:
    """Returns all trials in the order of their start."""
    keys = [item.key for item in store.list(search_key(search, "trials"))]
    return sorted((TrialRecord.model_validate_json(store.read(key)) for key in keys), key=lambda trial: trial.number)


def write_trial(store: Store, search: str, trial: TrialRecord) -> None:
    """Writes one trial's record whole."""
    store.write(search_key(search, f"trials/{trial.run}.json"), trial.model_dump_json(indent=2).encode())


def refuse_other(existing: SearchRecord | None, new: SearchRecord, config: SearchConfig, num_trials: int) -> None:
    """Raises ConfigError where a search would be mixed with another of the same name, or begun twice."""
    if existing is None:
        return
    if not config.resume:
        raise ConfigError(
            f"search {config.search} exists with {num_trials} of {config.max_trials} trials; go on with --resume, or choose "
            "another --search"
        )
    old, now = existing.model_dump(), new.model_dump()
    settings = {"space": (old["space"], now["space"]), "seed": (old["seed"], now["seed"])}
    # A setting that is younger than the search had what is now its default.
    default = {name: field.get_default(call_default_factory=True) for name, field in TrainConfig.model_fields.items()}
    base = {**default, **old["base"]}
    settings |= {name: (base[name], now["base"].get(name)) for name in old["base"].keys() | now["base"].keys()}
    if differing := [f"{name} was {was!r}, now {is_!r}" for name, (was, is_) in sorted(settings.items()) if was != is_]:
        raise ConfigError(
            f"search {config.search} exists with other settings: {'; '.join(differing)}. Choose another --search, or the old "
            "settings"
        )


def base_settings(base: TrainConfig, dataset: str) -> dict[str, Any]:
    """Returns what decides a trial's result, of the train config; where it runs may change between calls."""
    return {**base.model_dump(mode="json", exclude=MAY_CHANGE | {"run"}), "dataset": dataset}


def direction(monitor: Monitor) -> Literal["min", "max"]:
    """Tells which way the monitored value is better."""
    return "min" if monitor == "val_loss" else "max"


def best_so_far(values: Sequence[float], monitor: Monitor) -> tuple[float, ...]:
    """Returns the best value up to each epoch: what a trial is judged by, since a run keeps its best epoch's weights."""
    best = np.minimum.accumulate(values) if direction(monitor) == "min" else np.maximum.accumulate(values)
    return tuple(float(value) for value in best)


def make_sampler(seed: int, num_known: int) -> TPESampler:
    """Builds the multivariate TPE sampler; with ``constant_liar`` trials in flight count as bad, so that others spread out."""
    return TPESampler(
        multivariate=True, constant_liar=True, n_startup_trials=_STARTUP_TRIALS, seed=sampler_seed(seed, num_known)
    )


def sampler_seed(seed: int, num_known: int) -> int:
    """Returns the seed after so many trials: a resumed sampler with the first one's would draw the same trials again."""
    return int(np.random.SeedSequence([seed, num_known]).generate_state(1)[0])


def known_trials(trials: Iterable[TrialRecord], space: dict[str, BaseDistribution]) -> list[FrozenTrial]:
    """Turns ended trials into Optuna's; a failed one is pruned without a value, which TPE takes for worse than any value."""
    return [
        create_trial(
            state=TrialState.PRUNED if trial.value is None else TrialState.COMPLETE,
            value=trial.value,
            params=trial.params,
            distributions=space,
            intermediate_values=dict(enumerate(trial.curve, start=1)) if trial.value is not None else {},
        )
        for trial in trials
        if trial.status != "running"
    ]


def num_ended(trials: Iterable[TrialRecord]) -> int:
    """Counts the suggestions that were followed to their end, by which ``max_trials`` goes."""
    return sum(trial.times if trial.status != "running" else trial.times - 1 for trial in trials)


def ranked(trials: Iterable[TrialRecord], monitor: Monitor) -> list[TrialRecord]:
    """Returns the trials with a value, the best first; of equals the one started first."""
    sign = 1.0 if direction(monitor) == "min" else -1.0
    valued = [(sign * trial.value, trial.number, trial) for trial in trials if trial.value is not None]
    return [trial for _, _, trial in sorted(valued, key=lambda one: one[:2])]
