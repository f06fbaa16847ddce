"""The one configuration mechanism: a frozen pydantic model, read from YAML first, with command-line flags on top."""

from typing import Annotated, Any, Self

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from historay.errors import ConfigError
from historay.storage import read_uri

# What may stand in a store key, a URL and a command without quoting: the names of data sets, runs, models and aliases.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


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
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            given, arguments = _typed(read_yaml(arguments[0]), cls, arguments[0]), arguments[1:]
        required = {name: tyro.MISSING for name, field in cls.model_fields.items() if field.is_required()}
        flags: Any = tyro.cli(
            cls,
            default=cls.model_construct(**{**required, **given}),
            args=arguments,
            prog=f"{prog} [CONFIG.yaml]",
            description=f"{cls.__doc__}\n\nExamples:\n{examples}" if examples else cls.__doc__,
        )
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


def _typed(values: dict[str, Any], cls: type[BaseModel], origin: str) -> dict[str, Any]:
    """Checks each value against its own field, so that what is wrong in the YAML is said of the YAML and not of a flag."""
    typed = {}
    for name, value in values.items():
        if name not in cls.model_fields:
            raise ConfigError(f"{origin}: unknown field {name}; known are {', '.join(cls.model_fields)}")
        try:
            typed[name] = TypeAdapter(cls.model_fields[name].rebuild_annotation()).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {name}={value!r}: {error.errors()[0]['msg']}") from None
    return typed


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
