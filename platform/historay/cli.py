"""The command line: ``historay COMMAND [CONFIG.yaml] [--field value ...]``. No logic; each command calls one function."""

import sys
from collections.abc import Callable
from importlib.metadata import version

import tyro
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from historay.errors import HistorayError
from historay.log import setup_logging

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


def _evaluate(arguments: list[str]) -> None:
    """Judges a run once on its untouched test split; writes the report and the bundle."""
    from historay.training.evaluate import EvaluateConfig, evaluate_run

    examples = "  historay evaluate jobs/configs/demo-evaluate.yaml\n  historay evaluate --run resnet18-long"
    config = EvaluateConfig.from_command_line(arguments, "historay evaluate", examples)
    result = evaluate_run(config)
    _next(
        f"model {result.reference}; its report: {result.report}",
        f"historay serve --store {config.store} --model {result.reference}",
    )


def _serve(arguments: list[str]) -> None:
    """Serves a model over HTTP with Ray Serve until Ctrl-C."""
    from historay.serving.app import ServeConfig, serve

    examples = "  historay serve jobs/configs/demo-serve.yaml\n  historay serve --model demo@production --port 8000"
    serve(ServeConfig.from_command_line(arguments, "historay serve", examples))


def _predict(arguments: list[str]) -> None:
    """Predicts images, folders or s3:// prefixes with a bundle, or through an endpoint by --url."""
    from historay.serving.predict import PredictConfig, predict

    examples = (
        "  historay predict tile.jpg folder/ --model demo --store demo/store\n"
        "  historay predict s3://bucket/tiles --url http://127.0.0.1:8000 --format json"
    )
    if num_failed := predict(PredictConfig.from_command_line(arguments, "historay predict", examples)):
        raise HistorayError(f"{num_failed} image(s) could not be used; the reasons stand above")


def _models(arguments: list[str]) -> None:
    """Lists, shows, promotes and rolls back models."""
    commands: dict[str, Callable[..., None]] = {
        "list": _models_list,
        "show": _models_show,
        "promote": _models_promote,
        "rollback": _models_rollback,
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="historay models", args=arguments)


def _models_list(store: str = "historay-store") -> None:
    """Lists every model version in the store with its aliases.

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

    Args:
        reference: name, name@alias or name@version.
        store: Local path or s3://bucket/prefix.
    """
    from historay.models.registry import describe_model
    from historay.storage import open_store

    print(yaml.safe_dump(describe_model(open_store(store), reference), sort_keys=False), end="")  # noqa: T201


def _models_promote(reference: tyro.conf.Positional[str], reason: str, store: str = "historay-store") -> None:
    """Points the alias production at a model, after checking every byte of it.

    Args:
        reference: name@candidate or name@version.
        reason: Why; kept in the alias's history.
        store: Local path or s3://bucket/prefix.
    """
    from historay.models.bundle import load_bundle
    from historay.models.registry import PRODUCTION, resolve, set_alias
    from historay.storage import open_store

    opened = open_store(store)
    name, number = resolve(opened, reference)
    load_bundle(opened, name, number)
    set_alias(opened, name, PRODUCTION, number, reason)
    _next(f"{name}@{PRODUCTION} is now {number}", f"historay serve --store {store} --model {name}@{PRODUCTION}")


def _models_rollback(name: tyro.conf.Positional[str], reason: str, store: str = "historay-store") -> None:
    """Points the alias production back at the version before.

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
    "evaluate": _evaluate,
    "models": _models,
    "serve": _serve,
    "predict": _predict,
}


def _next(done: str, command: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"{done}\nnext: {command}"))


def _summary(command: Callable[[list[str]], None]) -> str:
    return (command.__doc__ or "").strip()


def _fail(message: str, status: int) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text("historay: ", style="bold red") + Text(message))
    sys.exit(status)
