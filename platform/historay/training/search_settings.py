"""What a search may try: the settings of the search, and the space of train settings declared in its YAML."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, get_args

import tyro
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from historay.config import Config, Name, read_yaml
from historay.errors import ConfigError
from historay.training.settings import TrainConfig

Params = dict[str, Any]

# What names a run, decides what is compared, or what a trial occupies: the same for all trials of a search.
_FIXED = {"run", "dataset", "store", "monitor", "seed", "accept_leaks"} | {
    "num_workers",
    "cpus_per_worker",
    "use_gpu",
    "logger",
    "max_failures",
    "cache_gib",
    "min_workers",
    "hang_timeout_s",
}
DRIVER_CPUS = 0.1  # of a trial, beside its workers; Tune refuses 0
_RANGE_KEYS = {"low", "high", "log", "step"}


def _parsable(space: dict[str, Any]) -> dict[str, Any]:
    parse_space(space)
    return space


class SearchConfig(Config):
    """Searches the settings of a training run with Ray Tune and Optuna, and retrains and ranks the best on validation."""

    search: Name
    """What the search is called in the store; its runs are called <search>-<digest of what they try>."""
    train: str
    """Train config (YAML) that every trial starts from: data set, store, workers, epochs, and all that is not searched."""
    space: Annotated[dict[str, Any], AfterValidator(_parsable), tyro.conf.Suppress] = Field(
        default_factory=dict, validate_default=True
    )
    """In the YAML: a range {low: 1.0e-4, high: 1.0e-2, log: true} or a list of choices for each train setting to search."""
    max_trials: int = Field(default=20, ge=1)
    """Trials in all, over every resume."""
    max_hours: float = Field(default=12.0, gt=0)
    """Wall time of one call, finalists and all but the winner's evaluation; what trains then stops, and --resume goes on."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at the same time; never more than the cluster has room for, which is also the default."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs before ASHA may stop a trial."""
    reduction: float = Field(default=3.0, gt=1)
    """ASHA lets one in so many trials go on at each rung; rungs stand at grace_epochs times its powers."""
    num_finalists: int = Field(default=3, ge=1)
    """Best trials that are trained again, from scratch."""
    num_seeds: int = Field(default=3, ge=1)
    """Seeds with which each finalist is trained."""
    final_epochs: int | None = Field(default=None, ge=1)
    """Epochs of a finalist, where trials are shorter than what counts."""
    folds: int | None = Field(default=None, ge=2)
    """Rank the finalists by cross-validation over so many folds of patients of train and val, instead of by seeds."""
    name: Name | None = None
    """What the winner's model is called in the registry; the search's name if not given."""
    seed: int = 0
    """Decides what Optuna draws, and the finalists' seeds."""
    resume: bool = False
    """Go on with the search of that name if there is one; no finished trial is run again."""


def parse_space(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Turns the YAML's space into Optuna distributions; ConfigError names the field, its value and the rule it breaks."""
    if not space:
        raise ConfigError("space is empty: name at least one train setting with a range or a list of choices in the YAML")
    return {field: _distribution(field, declared) for field, declared in space.items()}


def base_config(config: SearchConfig) -> TrainConfig:
    """Reads the train config that all trials start from; its run is replaced by each trial's."""
    values = read_yaml(config.train)
    return TrainConfig.from_mapping({**values, "run": config.search}, config.train)


def trial_config(base: TrainConfig, params: Mapping[str, Any], run: str) -> TrainConfig:
    """Returns the settings of one trial; ConfigError if what is tried does not fit together."""
    return TrainConfig.from_mapping({**base.model_dump(), **params, "run": run}, run)


def trial_run(search: str, params: Mapping[str, Any]) -> str:
    """Names a trial's run by what it tries, so that the same settings are the same run and are never trained twice."""
    digest = hashlib.sha256(json.dumps(dict(params), sort_keys=True).encode()).hexdigest()
    return f"{search}-{digest[:8]}"


def to_yaml(config: TrainConfig, comment: str) -> str:
    """Renders settings, without those at their defaults, as the YAML that ``historay train`` takes."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + yaml.safe_dump(values, sort_keys=False)


def max_concurrent(nodes: list[Mapping[str, float]], config: TrainConfig, limit: int | None) -> int:
    """Returns how many trials the nodes (resources by name, as Ray states them) hold at once, at most ``limit``.

    So many that every one of them can place its workers, wherever Ray puts the trials' drivers: workers are placed all together
    or not at all, so that none then waits for another's.
    Raises ConfigError if there is no room for one trial.
    """
    most = sum(_room(node, config) for node in nodes) // config.num_workers
    held = max((trials for trials in range(1, most + 1) if _fits(nodes, config, trials)), default=0)
    if not held:
        needs = config.num_workers * config.cpus_per_worker + DRIVER_CPUS
        gpus = f" and {config.num_workers} GPU" if config.use_gpu else ""
        there = " + ".join(f"{node.get('CPU', 0.0):g} CPU {node.get('GPU', 0.0):g} GPU" for node in nodes)
        raise ConfigError(
            f"one trial needs {needs:g} CPU{gpus} (its {config.num_workers} workers and its driver), "
            f"and the nodes have {there}; lower num_workers or cpus_per_worker in the train config, or add nodes"
        )
    return min(held, limit) if limit is not None else held


def _room(node: Mapping[str, float], config: TrainConfig, taken_cpus: float = 0.0) -> int:
    """Counts the workers that fit on one node; a worker never spans two."""
    room = (node.get("CPU", 0.0) - taken_cpus) // config.cpus_per_worker
    return max(0, int(min(room, node.get("GPU", 0.0)) if config.use_gpu else room))


def _fits(nodes: list[Mapping[str, float]], config: TrainConfig, trials: int) -> bool:
    """Tells whether all trials can run at once, if each driver takes its CPUs where that costs the most room."""
    tight = sum(_room(node, config) > _room(node, config, DRIVER_CPUS) for node in nodes)
    lost = min(trials, tight) + int(trials * DRIVER_CPUS // config.cpus_per_worker)
    cpus = trials * (config.num_workers * config.cpus_per_worker + DRIVER_CPUS)
    there = sum(node.get("CPU", 0.0) for node in nodes)
    return sum(_room(node, config) for node in nodes) - lost >= trials * config.num_workers and cpus <= there


def _distribution(field: str, declared: Any) -> BaseDistribution:
    if field not in TrainConfig.model_fields:
        known = ", ".join(name for name in TrainConfig.model_fields if name not in _FIXED)
        raise ConfigError(f"space: unknown train setting {field}; there are {known}")
    if field in _FIXED:
        raise ConfigError(f"space: {field} is the same for all trials of a search; set it in the train config")
    if isinstance(declared, list):
        if len(declared) < 2:
            raise ConfigError(f"space: {field}={declared!r}: a choice needs at least two values")
        return CategoricalDistribution([_valid(field, choice) for choice in declared])
    if not isinstance(declared, dict) or not {"low", "high"} <= declared.keys() <= _RANGE_KEYS:
        raise ConfigError(f"space: {field}={declared!r}: give a list of choices, or low and high, with log or step if wanted")
    return _range(field, declared)


def _range(field: str, declared: dict[str, Any]) -> FloatDistribution | IntDistribution:
    low, high = _valid(field, declared["low"]), _valid(field, declared["high"])
    step, log = declared.get("step"), declared.get("log", False)
    kinds = {TrainConfig.model_fields[field].annotation, *get_args(TrainConfig.model_fields[field].annotation)}
    if not isinstance(low, int | float) or isinstance(low, bool):
        raise ConfigError(f"space: {field}={declared!r}: {field} is not a number; give a list of choices")
    if not isinstance(log, bool):
        raise ConfigError(f"space: {field}: log={log!r}: true or false")
    if log and step is not None:
        raise ConfigError(f"space: {field}: log and step={step} exclude each other; leave one out")
    if low >= high or (log and low <= 0):
        raise ConfigError(f"space: {field}: low={low} and high={high}: low must be below high, and above 0 with log")
    try:
        if int in kinds:
            return IntDistribution(int(low), int(high), log=log, step=1 if step is None else step)
        return FloatDistribution(low, high, log=log, step=step)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"space: {field}={declared!r}: {error}") from None


def _valid(field: str, value: Any) -> Any:
    """Checks one value by the train setting's own rule and returns it in the setting's type: YAML reads 1e-4 as a text."""
    try:
        return TypeAdapter(TrainConfig.model_fields[field].rebuild_annotation()).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"space: {field}={value!r}: {error.errors()[0]['msg']}") from None
