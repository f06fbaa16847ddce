"""The command line says what it can do, and every command that is written down somewhere can be typed."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from bundles import PROBES, SPEC, network

from historay.cli import COMMANDS, main
from historay.config import Config
from historay.models.bundle import save_bundle
from historay.models.registry import PRODUCTION, set_alias
from historay.storage import LocalStore

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "jobs/configs").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Understood(Exception):
    """Raised in place of the work, once a command's settings are read and checked."""


@pytest.fixture
def only_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder with the run configs, commands stop before they begin to work."""
    read = Config.from_command_line.__func__  # type: ignore[attr-defined]

    def read_and_stop(cls: type[Config], *arguments: Any, **options: Any) -> Self:
        raise Understood(read(cls, *arguments, **options))

    monkeypatch.setattr(Config, "from_command_line", classmethod(read_and_stop))
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    shutil.copytree(ROOT / "jobs/configs", tmp_path / "jobs/configs")
    shutil.copy(ROOT / "jobs/configs/pcam-tiny-search.yaml", tmp_path / "search.yaml")
    for profile in ("gpu.yaml", "cluster.yaml"):
        (tmp_path / profile).write_text("cpus: 2\n")
    monkeypatch.chdir(tmp_path)


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Types one command; returns its exit status."""
    monkeypatch.setattr("sys.argv", ["historay", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def understood(monkeypatch: pytest.MonkeyPatch, command: str) -> bool:
    """Tells whether a command's names, flags and values are right; models and keys run, and may find no store."""
    arguments = shlex.split(command, comments=True)[1:]
    try:
        return typed(monkeypatch, *arguments) < 2 and arguments[0] in {"models", "keys"}
    except Understood:
        return True


def shown(text: str) -> list[str]:
    """The commands of a page's code blocks, or of a help text."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if re.match(r"\s*historay [a-z]+ ", line) and "..." not in line]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_run_config_begins_with_its_command_which_reads_it(
    only_read: None, monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    first = config.read_text().splitlines()[0].removeprefix("# ")
    assert str(config) in first
    assert understood(monkeypatch, first), first


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_of_the_pages_are_real(only_read: None, monkeypatch: pytest.MonkeyPatch, page: Path) -> None:
    text = page.read_text()
    blocks = "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL))
    for command in shown(blocks):
        assert understood(monkeypatch, command), command
    assert set(re.findall(r"`historay ([a-z]+)", text)) <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for path in re.findall(r"(?<![\w/])jobs/[a-z0-9/_-]+\.(?:yaml|py|sh)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_that_are_real(
    only_read: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert typed(monkeypatch, command, "--help") == 0
    examples = shown(capsys.readouterr().out.replace("Example: ", "\n"))
    assert examples
    for example in examples:
        assert understood(monkeypatch, example), example


def test_an_unknown_command_is_refused_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "trian") == 2
    assert "unknown command 'trian'; there are synth, ingest, train" in capsys.readouterr().err


def test_models_are_listed_shown_refused_forced_and_rolled_back(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        save_bundle(store, SPEC.model_copy(update={"seed": seed, "accepted_leaks": ()}), network(), {}, PROBES)
        for seed in (1, 2)
    )
    for version in (first, second):
        set_alias(store, "demo", PRODUCTION, version, "a test")

    def models(*arguments: str) -> tuple[int, str, str]:
        status = typed(monkeypatch, "models", *arguments, "--store", store.uri)
        return (status, *capsys.readouterr())

    status, listed, _ = models("list")
    assert status == 0
    named = {version: line for line in listed.splitlines() for version in (first, second) if version in line}
    assert {version: PRODUCTION in line for version, line in named.items()} == {first: False, second: True}
    assert yaml.safe_load(models("show", "demo@production")[1])["seed"] == 2
    refused = models("promote", f"demo@{first}", "--reason", "a test", "--policy", str(ROOT / "jobs/configs/gate.yaml"))
    assert refused[0] == 1
    assert "historay evaluate judges it" in refused[2]
    assert models("rollback", "demo", "--reason", "a test")[0] == 0
    assert yaml.safe_load(models("show", "demo@production")[1])["seed"] == 1
    assert models("show", "nobody")[0] == 1
