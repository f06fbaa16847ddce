"""A config is read from YAML, then from flags, and says plainly what is wrong."""

from pathlib import Path

import pytest

from historay.config import Config
from historay.errors import ConfigError


class Example(Config):
    """An example."""

    name: str
    """What it is called."""
    num_tiles: int = 4
    """How many tiles."""
    kinds: tuple[str, ...] = ()
    """Which kinds."""


def written(folder: Path, text: str) -> str:
    path = folder / "example.yaml"
    path.write_text(text)
    return str(path)


def test_flags_go_on_top_of_the_yaml(tmp_path: Path) -> None:
    config = written(tmp_path, "name: a\nnum_tiles: 7\n")
    assert Example.from_command_line([config, "--name", "b", "--kinds", "x", "y"], "historay example") == Example(
        name="b", num_tiles=7, kinds=("x", "y")
    )


def test_flags_alone_are_enough() -> None:
    assert Example.from_command_line(["--name", "b"], "historay example") == Example(name="b")


def test_an_unknown_field_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    config = written(tmp_path, "name: a\ntiles: 7\n")
    with pytest.raises(ConfigError, match="unknown field tiles; known are name, num_tiles, kinds"):
        Example.from_command_line([config], "historay example")
    with pytest.raises(ConfigError, match="unknown field tiles"):
        Example.from_yaml(config)


def test_a_wrong_value_is_named_with_its_rule(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_tiles='many': Input should be a valid integer"):
        Example.from_yaml(written(tmp_path, "name: a\nnum_tiles: many\n"))
    with pytest.raises(ConfigError, match="name is required"):
        Example.from_yaml(written(tmp_path, "num_tiles: 1\n"))
    with pytest.raises(ConfigError, match=r"example\.yaml: num_tiles='many': Input should be a valid integer"):
        Example.from_command_line([written(tmp_path, "num_tiles: many\n")], "historay example")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"example\.yaml: "):
        Example.from_yaml(written(tmp_path, text))


def test_help_shows_each_field_with_its_text_and_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        Example.from_command_line(["--help"], "historay example", examples="  historay example --name a")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "What it is called." in text
    assert "historay example --name a" in text
