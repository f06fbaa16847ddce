"""What ``historay submit`` and ``historay jobs`` do, from their arguments to an exit status."""

import secrets
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pkgutil import resolve_name

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from historay.cluster.follow import ask_to_cancel, follow
from historay.cluster.jobs import Jobs
from historay.cluster.kube import KubernetesJobs
from historay.cluster.settings import JobsConfig, SubmitConfig
from historay.cluster.stages import PipelineConfig, Stage, check_pipeline, check_stage, job_name
from historay.config import Config, read_yaml
from historay.errors import ConfigError

PIPELINE = ("ingest", "train", "evaluate")
_EXAMPLES = """  historay submit train train.yaml --workers 4 --gpus 1 --env-from-secret s3
  historay submit train train.yaml cluster.yaml -- --epochs 20 --use-gpu
  historay submit pipeline pipeline.yaml cluster.yaml --queue team-a
  historay submit evaluate evaluate.yaml --address http://127.0.0.1:8265"""
_OF_ALL = {"list", "clean"}
_JOBS_EXAMPLES = """  historay jobs list --namespace historay
  historay jobs wait NAME --address http://127.0.0.1:8265"""
_JOBS_USAGE = """usage: historay jobs COMMAND [NAME] [--namespace ...] [--context ...] [--address ...]

  list         Historay's jobs, oldest first
  logs NAME    prints the log as far as it is
  wait NAME    follows a job to its end and exits with its status
  cancel NAME  ends a job; a run goes on from its last checkpoint when it is submitted again
  clean        removes the jobs that have ended, which count in a namespace's quota; what they made stays"""


def submit(arguments: list[str], stages: Mapping[str, str]) -> int:
    """Runs ``STAGE CONFIG.yaml [PROFILE.yaml] [--field value ...] [-- --stage-field value ...]``; returns the job's status.

    ``stages`` names the settings of each stage as ``module:Class``: this package imports no stage.
    """
    name, own, flags = _split(arguments, [*stages, "pipeline"])
    cluster = SubmitConfig.from_command_line(flags, f"historay submit {name or 'STAGE'} CONFIG.yaml [PROFILE.yaml]", _EXAMPLES)
    if name == "pipeline":
        plan = [Stage(stage, _settings(stages[stage]).from_yaml(uri)) for stage, uri in _pipeline(own).items()]
        check_pipeline(plan)
        if cluster.detach:
            raise ConfigError(
                "detach=True: a pipeline is followed from stage to stage; drop --detach, or submit the stages singly"
            )
    else:
        plan = [_stage(name, own, stages)]
    for stage in plan:
        check_stage(stage, cluster)
    return _run(plan, cluster)


def jobs(arguments: list[str]) -> int:
    """Runs ``list``, ``clean``, ``logs NAME``, ``wait NAME`` or ``cancel NAME``."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(f"{_JOBS_USAGE}\n\nExamples:\n{_JOBS_EXAMPLES}")  # noqa: T201
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in {"list", "logs", "wait", "cancel", "clean"}:
        raise ConfigError(f"historay jobs {command}: unknown; there are list, logs, wait, cancel, clean")
    name = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    if command not in _OF_ALL and not name and not {"-h", "--help"} & set(rest):
        raise ConfigError(f"historay jobs {command}: which job? historay jobs list shows their names")
    there = JobsConfig.from_command_line(rest, f"historay jobs {command}{'' if command in _OF_ALL else ' NAME'}")
    found = _open(there.namespace, there.context, there.address)
    match command:
        case "list":
            _print_table(found)
        case "logs":
            _print_log(found, name)
        case "wait":
            return _follow(found, name)
        case "cancel":
            _tell(f"{name}: {found.cancel(name)}")
        case "clean":
            _clean(found)
    return 0


def _clean(found: Jobs) -> None:
    for view in found.views():
        if view.ended:
            found.remove(view.name)
            _tell(f"{view.name}: removed ({view.words})")


def _stage(name: str, own: list[str], stages: Mapping[str, str]) -> Stage:
    config = _settings(stages[name]).from_command_line(own, f"historay submit {name} CONFIG.yaml --")
    if name != "search":
        return Stage(name, config)
    search = config.model_dump()  # its trials are runs of its own, whatever the train config calls its run
    train = _settings(stages["train"]).from_yaml(search["train"], run=search["search"])
    return Stage(name, config, train)


def _settings(place: str) -> type[Config]:
    found = resolve_name(place)
    assert issubclass(found, Config), place
    return found  # type: ignore[no-any-return]


def _split(arguments: list[str], known: list[str]) -> tuple[str, list[str], list[str]]:
    """Splits the arguments into the stage, its own ones and the cluster's."""
    before, after = arguments, list[str]()
    if "--" in arguments:
        at = arguments.index("--")
        before, after = arguments[:at], arguments[at + 1 :]
    if not before or before[0] in {"-h", "--help"}:
        return "", [], ["--help"]
    name, rest = before[0], before[1:]
    if name not in known:
        raise ConfigError(f"historay submit {name}: unknown stage; there are {', '.join(known)}")
    if {"-h", "--help"} & set(rest):
        return name, [], ["--help"]
    if not rest or not rest[0].endswith((".yaml", ".yml")):
        raise ConfigError(f"historay submit {name}: the stage's YAML comes first, as in historay submit {name} {name}.yaml")
    if name == "pipeline" and after:
        raise ConfigError(f"-- {' '.join(after)}: a pipeline's stages are set in their own YAML files")
    return name, [rest[0], *after], rest[1:]


def _pipeline(own: list[str]) -> dict[str, str]:
    config = PipelineConfig.from_mapping(read_yaml(own[0]), own[0])
    return {stage: getattr(config, stage) for stage in PIPELINE}


def _run(plan: list[Stage], cluster: SubmitConfig) -> int:
    """Submits the stages in order and stops at the first failure."""
    found = _open(cluster.namespace, cluster.context, cluster.address)
    for number, stage in enumerate(plan):
        name = job_name(stage, secrets.token_hex(3))
        if cluster.dry_run:
            assert isinstance(found, KubernetesJobs), "SubmitConfig refuses dry_run with an address"
            print(yaml.safe_dump(found.check(stage, cluster, name), sort_keys=False))  # noqa: T201
            _tell(f"{found.where} accepts {name}; nothing was created")
            continue
        found.submit(stage, cluster, name)
        _tell(f"{name}: submitted to {found.where}")
        if cluster.detach:
            _tell(f"next: historay jobs wait {name}{found.flags}")
            return 0
        if status := _follow(found, name):
            left = ", ".join(later.name for later in plan[number + 1 :])
            if left:
                _tell(f"the pipeline ends here; not run: {left}")
            return status
    return 0


def _follow(found: Jobs, name: str) -> int:
    try:
        return follow(found, name, _tell, sys.stdout).exit_status
    except KeyboardInterrupt:
        return ask_to_cancel(found, name, _tell)


def _open(namespace: str | None, context: str | None, address: str | None) -> Jobs:
    if address is None:
        return KubernetesJobs(namespace, context)
    from historay.cluster.ray_jobs import RayJobs

    return RayJobs(address)


def _print_log(found: Jobs, name: str) -> None:
    view = found.view(name)  # says so if there is no such job
    line = None
    for line in found.lines(name, lambda: True):
        print(line)  # noqa: T201
    if line is None:
        _tell(f"{name}: no log {'is left; its submitter pod is gone' if view.ended else 'yet'} ({view.words})")


def _print_table(found: Jobs) -> None:
    table = Table("job", "stage", "phase", "minutes", "what that means")
    for view in found.views():
        minutes = f"{(datetime.now(UTC) - view.created).total_seconds() / 60:.0f}" if view.created else ""
        table.add_row(view.name, view.stage, view.phase, minutes, view.words)
    Console().print(table)


def _tell(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text))
