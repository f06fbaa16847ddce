"""The command line: ``historay COMMAND [CONFIG.yaml] [--field value ...]``. No logic; each command calls one function."""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import tyro
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from historay.errors import HistorayError
from historay.log import log_event, setup_logging

_STYLES = {"alarm": "bold red", "caution": "yellow", "note": "blue"}
_USAGE = """usage: historay COMMAND [CONFIG.yaml] [--field value ...]

Trains, judges and serves image classifiers for cancer histology. Research software: not a medical device.

commands, in the order of their use:
{commands}

historay COMMAND --help lists a command's fields, with examples. Every path may be local or s3://bucket/prefix
(endpoint and credentials come from the standard AWS variables). RAY_ADDRESS joins a Ray cluster.
"""


def main() -> None:
    """Runs one command; exits with 0, with 1 and one line on an error that the user can mend, with 130 on Ctrl-C."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help"}:
        listed = "\n".join(f"  {name:<9} {_summary(command)}" for name, command in COMMANDS.items())
        print(_USAGE.format(commands=listed))  # noqa: T201
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(version("historay"))  # noqa: T201
        return
    if arguments[0] not in COMMANDS:
        _fail(f"unknown command {arguments[0]!r}; there are {', '.join(COMMANDS)}", status=2)
    setup_logging()
    try:
        COMMANDS[arguments[0]](arguments[1:])
    except HistorayError as error:
        _fail(str(error), status=1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing is half-written, and the same command goes on where it can", status=130)


def _synth(arguments: list[str]) -> None:
    """Draws a synthetic H&E data set with known truth, to try everything without data."""
    from historay.data.synthetic import SyntheticConfig, write_synthetic

    examples = "  historay synth --out demo/tiles --num-tiles 4000\n  historay synth --out s3://bucket/tiles --seed 7"
    config = SyntheticConfig.from_command_line(arguments, "historay synth", examples)
    write_synthetic(config)
    _next(
        f"tiles and manifest.csv in {config.out}",
        f"historay ingest --layout manifest --source {config.out}/manifest.csv --name demo",
    )


def _ingest(arguments: list[str]) -> None:
    """Reads images into an immutable data set version: checked, split by patient, searched for leaks."""
    from historay.data.ingest import IngestConfig, ingest

    examples = (
        "  historay ingest jobs/configs/demo-ingest.yaml\n"
        "  historay ingest --layout folder --source s3://bucket/tiles --name crc --store s3://bucket/historay"
    )
    dataset = ingest(IngestConfig.from_command_line(arguments, "historay ingest", examples))
    card = dataset.store.locate(f"{dataset.prefix}/card.html")
    _next(
        f"data set {dataset.reference}; its card: {card}",
        f"historay train --store {dataset.store.uri} --dataset {dataset.reference} --run NAME",
    )


def _train(arguments: list[str]) -> None:
    """Trains a network from random weights with Ray Train; the same command resumes a broken run."""
    from historay.training.settings import TrainConfig
    from historay.training.train import train

    examples = (
        "  historay train jobs/configs/demo-train.yaml\n"
        "  historay train jobs/configs/demo-train.yaml --model resnet18 --epochs 12 --run resnet18-long"
    )
    config = TrainConfig.from_command_line(arguments, "historay train", examples)
    run = train(config)
    _next(f"run {run} in {config.store}", f"historay evaluate --store {config.store} --run {run}")


def _search(arguments: list[str]) -> None:
    """Searches a run's settings with Ray Tune and Optuna, retrains the best, and judges the winner once."""
    from historay.training.search_run import search
    from historay.training.search_settings import SearchConfig

    examples = (
        "  historay search jobs/configs/pcam-tiny-search.yaml\n"
        "  historay search jobs/configs/pcam-tiny-search.yaml --resume --max-hours 2"
    )
    config = SearchConfig.from_command_line(arguments, "historay search", examples)
    selection = search(config)
    if selection is None:
        sys.exit(130)
    _next(
        f"winner {selection.winner_run}: model {selection.test}; its report: {selection.report}",
        f"historay models show {selection.test}",
    )


def _evaluate(arguments: list[str]) -> None:
    """Judges a run once on its untouched test split; writes the report and the bundle."""
    from historay.training.evaluate import EvaluateConfig, evaluate_run

    examples = "  historay evaluate jobs/configs/demo-evaluate.yaml\n  historay evaluate --run resnet18-long"
    config = EvaluateConfig.from_command_line(arguments, "historay evaluate", examples)
    result = evaluate_run(config)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for finding in result.findings:
        console.print(Text(f"{finding.level.upper():<8}", style=_STYLES[finding.level]) + Text(finding.text))
    _next(
        f"model {result.reference}; its report: {result.report}",
        f"historay serve --store {config.store} --model {result.reference}",
    )


def _compare(arguments: list[str]) -> None:
    """Compares two evaluated models on the same test tiles, with paired tests."""
    from historay.training.compare import CompareConfig, compare_models

    examples = (
        "  historay compare demo@candidate demo@production\n"
        "  historay compare resnet18 densenet121 --store s3://bucket/historay"
    )
    config = CompareConfig.from_command_line(arguments, "historay compare", examples)
    result = compare_models(config)
    table = Table("test split", "A", "B", "A less B (paired)", "p")
    for name, figure in result.comparison.figures.items():
        p_value = "" if figure.p_value is None else f"{figure.p_value:.3g}"
        table.add_row(name, *(part.in_words() for part in (figure.a, figure.b, figure.difference)), p_value)
    Console().print(table)
    _next(f"the comparison, {result.page}", f"historay models show {config.models[0]} --store {config.store}")


def _serve(arguments: list[str]) -> None:
    """Serves a model over HTTP with Ray Serve until Ctrl-C."""
    from historay.serving.proxy import use_haproxy

    if "RAY_ADDRESS" not in os.environ:  # a cluster that is there has its own proxies
        use_haproxy()
    from historay.serving.app import ServeConfig, serve

    examples = "  historay serve jobs/configs/demo-serve.yaml\n  historay serve --model demo@production --port 8000"
    serve(ServeConfig.from_command_line(arguments, "historay serve", examples))


def _keys(arguments: list[str]) -> None:
    """Makes, lists and revokes the API keys of an endpoint; a running one follows."""
    commands: dict[str, Callable[..., None]] = {"new": _keys_new, "list": _keys_list, "revoke": _keys_revoke}
    tyro.extras.subcommand_cli_from_dict(commands, prog="historay keys", description=_keys.__doc__, args=arguments)


def _keys_new(key_id: tyro.conf.Positional[str], file: Path = Path("keys.yaml")) -> None:
    """Prints a new key, once: the file keeps its hash alone.

    Example: historay keys new lis-of-site-b --file keys.yaml

    Args:
        key_id: Names the system that will use the key, in the audit log; not a person.
        file: The endpoint's keys file.
    """
    from historay.serving.keys import new_key

    print(new_key(file, key_id))  # noqa: T201
    _next(f"its hash is in {file}", f"historay serve --keys-file {file}")


def _keys_list(file: Path = Path("keys.yaml")) -> None:
    """Lists the ids of the keys.

    Example: historay keys list --file keys.yaml

    Args:
        file: The endpoint's keys file.
    """
    from historay.serving.keys import read_keys

    table = Table("id", "created")
    for key in read_keys(file):
        table.add_row(key.id, key.created)
    Console().print(table)


def _keys_revoke(key_id: tyro.conf.Positional[str], file: Path = Path("keys.yaml")) -> None:
    """Locks a key out of every endpoint that reads the file.

    Example: historay keys revoke lis-of-site-b --file keys.yaml

    Args:
        key_id: The key's id.
        file: The endpoint's keys file.
    """
    from historay.serving.keys import revoke_key

    revoke_key(file, key_id)


def _predict(arguments: list[str]) -> None:
    """Predicts images, folders or s3:// prefixes: a few on the screen, millions into Parquet by --out."""
    from historay.serving.predict import predict
    from historay.serving.predict_settings import PredictConfig

    examples = (
        "  historay predict tile.jpg folder/ --model demo --store demo/store\n"
        "  historay predict s3://bucket/tiles --url http://127.0.0.1:8000 --format json\n"
        "  historay predict s3://bucket/tiles --model demo --store s3://bucket/historay --out s3://bucket/out --num-workers 8"
    )
    config = PredictConfig.from_command_line(arguments, "historay predict", examples)
    num_failed = predict(config)
    if num_failed and config.out is None:
        raise HistorayError(f"{num_failed} image(s) could not be used; the reasons stand above")
    if num_failed:  # among millions that is no failure: each has its row
        log_event("WARNING images not used", num=num_failed, reasons=f"{config.out}, column error_reason")


def _submit(arguments: list[str]) -> None:
    """Runs a stage, or the pipeline of three, on Kubernetes or a Ray cluster, and follows it."""
    from historay.cluster.commands import submit

    sys.exit(submit(arguments, _STAGES))


def _jobs(arguments: list[str]) -> None:
    """Lists, shows, awaits and cancels submitted jobs."""
    from historay.cluster.commands import jobs

    sys.exit(jobs(arguments))


# What can be submitted, each with the settings that check it before it travels.
_STAGES = {
    "ingest": "historay.data.ingest:IngestConfig",
    "train": "historay.training.settings:TrainConfig",
    "search": "historay.training.search_settings:SearchConfig",
    "evaluate": "historay.training.evaluate:EvaluateConfig",
    "predict": "historay.serving.predict_settings:PredictConfig",
}


def _models(arguments: list[str]) -> None:
    """Lists, shows, promotes and rolls back models."""
    commands: dict[str, Callable[..., None]] = {
        "list": _models_list,
        "show": _models_show,
        "promote": _models_promote,
        "rollback": _models_rollback,
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="historay models", description=_models.__doc__, args=arguments)


def _models_list(store: str = "historay-store") -> None:
    """Lists every model version in the store with its aliases.

    Example: historay models list --store s3://bucket/historay

    Args:
        store: Local path or s3://bucket/prefix.
    """
    from historay.models.registry import list_models
    from historay.storage import open_store

    table = Table("model", "version", "aliases")
    for name, known in list_models(open_store(store)).items():
        for number in known.versions:
            table.add_row(name, number, ", ".join(alias for alias, named in known.aliases.items() if named == number))
    Console().print(table)


def _models_show(reference: tyro.conf.Positional[str], store: str = "historay-store") -> None:
    """Shows what one model is and came from, as YAML.

    Example: historay models show demo@production --store demo/store

    Args:
        reference: name, name@alias or name@version.
        store: Local path or s3://bucket/prefix.
    """
    from historay.models.registry import describe_model
    from historay.storage import open_store

    print(yaml.safe_dump(describe_model(open_store(store), reference), sort_keys=False), end="")  # noqa: T201


def _models_promote(
    reference: tyro.conf.Positional[str],
    reason: str,
    store: str = "historay-store",
    policy: str | None = None,
    force: str | None = None,
) -> None:
    """Points the alias production at a model that passes the gate, and prints each check.

    Example: historay models promote demo@candidate --reason "the first model" --policy jobs/configs/gate.yaml

    Args:
        reference: name@candidate or name@version.
        reason: Why; kept in the alias's history.
        store: Local path or s3://bucket/prefix.
        policy: YAML of the gate's bounds; jobs/configs/gate.yaml shows all. The defaults if not given.
        force: Why a model that the gate refuses is promoted all the same; stays in the history and with the model card.
    """
    from historay.models.gate import GatePolicy, refusals
    from historay.models.registry import PRODUCTION
    from historay.storage import open_store
    from historay.training.promotion import promote

    bounds = GatePolicy.from_yaml(policy) if policy else GatePolicy()
    done = promote(open_store(store), reference, bounds, reason, force)
    table = Table("check", "", "found", "wanted", title=f"gate for {done.reference}", title_justify="left")
    for check in done.checks:
        table.add_row(check.name, "passed" if check.passed else "REFUSED", check.found, check.wanted)
    Console().print(table)
    if not done.promoted:
        raise HistorayError(f"{done.reference} is not promoted: {'; '.join(refusals(done.checks))}")
    name = done.reference.partition("@")[0]
    _next(f"{name}@{PRODUCTION} is now {done.reference}", f"historay serve --store {store} --model {name}@{PRODUCTION}")


def _models_rollback(name: tyro.conf.Positional[str], reason: str, store: str = "historay-store") -> None:
    """Points the alias production back at the version before.

    Example: historay models rollback demo --reason "site B reports false alarms"

    Args:
        name: The model's name.
        reason: Why; kept in the alias's history.
        store: Local path or s3://bucket/prefix.
    """
    from historay.models.registry import PRODUCTION, rollback
    from historay.storage import open_store

    moved = rollback(open_store(store), name, PRODUCTION, reason)
    _next(f"{name}@{PRODUCTION} is now {moved.version} again", f"historay models show {name} --store {store}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "synth": _synth,
    "ingest": _ingest,
    "train": _train,
    "search": _search,
    "evaluate": _evaluate,
    "compare": _compare,
    "models": _models,
    "serve": _serve,
    "keys": _keys,
    "predict": _predict,
    "submit": _submit,
    "jobs": _jobs,
}


def _next(done: str, command: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"{done}\nnext: {command}"))


def _summary(command: Callable[[list[str]], None]) -> str:
    return (command.__doc__ or "").strip()


def _fail(message: str, status: int) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text("historay: ", style="bold red") + Text(message))
    sys.exit(status)
