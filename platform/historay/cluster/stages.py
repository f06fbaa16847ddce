"""A stage with its settings, checked for running elsewhere: its name there, what it writes, whether it fits."""

import hashlib
import re
from typing import Any, NamedTuple

import yaml

from historay.cluster.settings import DATA_MOUNT, SubmitConfig
from historay.config import Config
from historay.errors import ConfigError

# KubeRay refuses longer RayJob names: it makes cluster, service and pod names by appending to them.
MAX_NAME = 47
# Beside the workers: each trial of a search has a driver on a tenth of a CPU.
_SPARE_CPUS = {"train": 0, "search": 1, "predict": 0}
_PATH_FIELDS = ("store", "source", "images", "out")
CONFIG_FILE, _TRAIN_FILE = "config.yaml", "train.yaml"


class Stage(NamedTuple):
    """One stage and its checked settings."""

    name: str  # ingest, train, search, evaluate, predict
    config: Config
    train: Config | None = None  # of a search: what its trials start from

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as plain values, each field present."""
        return self.config.model_dump(mode="json")

    @property
    def placed(self) -> dict[str, Any]:
        """The settings that say which store and how many workers: of a search, those of its trials."""
        return self.settings if self.train is None else self.train.model_dump(mode="json")

    @property
    def subject(self) -> str | None:
        """What the stage works on: the run, the search, the data set, the predictions' place; None if it only prints."""
        return self.settings.get({"ingest": "name", "search": "search", "predict": "out"}.get(self.name, "run"))

    @property
    def computes_in_driver(self) -> bool:
        """Whether the driver itself computes and must stand on a worker; the others' drivers only direct workers."""
        return self.name == "evaluate" or (self.name == "predict" and self.settings["out"] is None)

    def files(self, folder: str) -> dict[str, str]:
        """The settings as the YAML files that the stage reads, which will stand in ``folder``.

        A search is to go on with what an attempt before it has left, as training does by itself.
        """
        if self.train is None:
            return {CONFIG_FILE: yaml.safe_dump(self.settings, sort_keys=False)}
        search = {**self.settings, "train": f"{folder}/{_TRAIN_FILE}", "resume": True}
        texts = {CONFIG_FILE: search, _TRAIN_FILE: self.placed}
        return {name: yaml.safe_dump(values, sort_keys=False) for name, values in texts.items()}


def job_name(stage: Stage, token: str) -> str:
    """Returns ``stage-subject-token``, a valid name of a RayJob and of all that KubeRay derives from it."""
    subject = (stage.subject or "job").rstrip("/").rpartition("/")[2]
    words = re.sub(r"[^a-z0-9]+", "-", f"{stage.name}-{subject}".lower())
    return f"{words[: MAX_NAME - 1 - len(token)].strip('-')}-{token}"


def output_id(stage: Stage) -> str | None:
    """Returns 16 digits that two jobs share if they would write the same thing; None if it only prints."""
    if stage.subject is None:
        return None
    return hashlib.sha256(f"{stage.name}\n{stage.placed['store']}\n{stage.subject}".encode()).hexdigest()[:16]


def check_stage(stage: Stage, cluster: SubmitConfig) -> None:
    """Raises ConfigError if pods could not see a path, or if the stage would wait for ever for CPUs or GPUs."""
    if cluster.address is None:
        _check_paths(stage, cluster)
        _check_room(stage, cluster)


def _check_paths(stage: Stage, cluster: SubmitConfig) -> None:
    for field in _PATH_FIELDS:
        value = stage.placed.get(field) or ()
        for path in [value] if isinstance(value, str) else value:
            mounted = cluster.claim and f"{path}/".startswith(f"{DATA_MOUNT}/")
            if not (mounted or path.startswith("s3://")):
                raise ConfigError(
                    f"{stage.name}: {field}={path!r} is a path of this machine, which no pod sees; use s3://bucket/prefix, "
                    f"or --claim NAME and a path below {DATA_MOUNT}"
                )


def _check_room(stage: Stage, cluster: SubmitConfig) -> None:
    if stage.name not in _SPARE_CPUS or stage.computes_in_driver:
        return
    settings, spare = stage.placed, _SPARE_CPUS[stage.name]
    num_workers, each = settings["num_workers"], settings["cpus_per_worker"]
    wanted, given = num_workers * each + spare, cluster.workers * cluster.cpus
    if each > cluster.cpus or wanted > given:
        raise ConfigError(
            f"num_workers={num_workers} with cpus_per_worker={each} need {wanted} CPUs ({spare} of them for drivers), "
            f"and workers={cluster.workers} with cpus={cluster.cpus} give {given}; raise --workers or --cpus"
        )
    if settings["use_gpu"] and num_workers > cluster.workers * cluster.gpus:
        raise ConfigError(
            f"num_workers={num_workers} with use_gpu need {num_workers} GPUs, and workers={cluster.workers} "
            f"with gpus={cluster.gpus} give {cluster.workers * cluster.gpus}; raise --gpus or --workers"
        )
    if cluster.gpus and not settings["use_gpu"]:
        raise ConfigError(f"gpus={cluster.gpus} and use_gpu=False: the GPUs would idle; add -- --use-gpu, or drop --gpus")


class PipelineConfig(Config):
    """The stages ingest, train and evaluate, run in this order; the first that fails ends it."""

    ingest: str
    """YAML of historay ingest."""
    train: str
    """YAML of historay train."""
    evaluate: str
    """YAML of historay evaluate."""


def check_pipeline(stages: list[Stage]) -> None:
    """Raises ConfigError if a stage would not find what the one before it makes."""
    ingest, train, evaluate = (stage.settings for stage in stages)
    pairs = [
        ("ingest.store", ingest["store"], "train.store", train["store"]),
        ("train.store", train["store"], "evaluate.store", evaluate["store"]),
        ("ingest.name", ingest["name"], "train.dataset", train["dataset"].partition("@")[0]),
        ("train.run", train["run"], "evaluate.run", evaluate["run"]),
    ]
    for first, value, second, other in pairs:
        if value != other:
            raise ConfigError(f"{first}={value!r} and {second}={other!r}: the second must name what the first makes")
