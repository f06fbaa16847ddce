"""The one configuration mechanism: a frozen pydantic model, read from YAML first, with command-line flags on top."""

from typing import Any, Self

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from historay.errors import ConfigError
from historay.storage import read_uri


class Config(BaseModel):
    """Base of every config: frozen, closed to unknown fields, each field documented by the text below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def from_mapping(cls, values: dict[str, Any], origin: str) -> Self:
        """Validates the values; a ConfigError names ``origin``, each field, its value and the rule that it breaks."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_explain(error, cls)}") from None

    @classmethod
    def from_yaml(cls, uri: str, **overrides: Any) -> Self:
        """Reads a YAML file (local path or s3:// URI); the overrides replace its fields."""
        return cls.from_mapping({**read_yaml(uri), **overrides}, uri)

    @classmethod
    def from_command_line(cls, arguments: list[str], prog: str, examples: str = "") -> Self:
        """Parses ``[CONFIG.yaml] [--field value ...]``; flags replace the YAML's fields.

        Exits with status 2 on a flag that is unknown or malformed, and with 0 after ``--help``.
        """
        given: dict[str, Any] = {}
        if arguments and not arguments[0].startswith("-"):
            given, arguments = read_yaml(arguments[0]), arguments[1:]
            _refuse_unknown(given, cls, prog)
        required = {name: tyro.MISSING for name, field in cls.model_fields.items() if field.is_required()}
        try:
            default = cls.model_construct(**{**required, **given})
            flags = tyro.cli(
                cls,
                default=default,
                args=arguments,
                prog=f"{prog} [CONFIG.yaml]",
                description=f"{cls.__doc__}\n\nExamples:\n{examples}" if examples else cls.__doc__,
            )
        except ValidationError as error:
            raise ConfigError(f"{prog}: {_explain(error, cls)}") from None
        return cls.from_mapping(flags.model_dump(), prog)


def read_yaml(uri: str) -> dict[str, Any]:
    """Reads one YAML mapping from a local path or an s3:// URI."""
    try:
        values = yaml.safe_load(read_uri(uri))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{uri}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{uri}: expected a mapping of field: value, found {type(values).__name__}")
    return values


def _refuse_unknown(values: dict[str, Any], cls: type[BaseModel], prog: str) -> None:
    if unknown := sorted(set(values) - set(cls.model_fields)):
        raise ConfigError(f"{prog}: unknown field {', '.join(unknown)}; known are {', '.join(cls.model_fields)}")


def _explain(error: ValidationError, cls: type[BaseModel]) -> str:
    """One sentence per wrong field: its name, its value and the broken rule."""
    sentences = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        rule = problem["msg"].removeprefix("Value error, ")
        match problem["type"]:
            case "extra_forbidden":
                sentences.append(f"unknown field {field}; known are {', '.join(cls.model_fields)}")
            case "missing":
                sentences.append(f"{field} is required")
            case _ if field:
                sentences.append(f"{field}={problem['input']!r}: {rule}")
            case _:
                sentences.append(rule)
    return "; ".join(sentences)
