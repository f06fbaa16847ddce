"""A hypothesis strategy for the JSON schemas that this project writes: draws whatever a schema allows, odd strings included."""

import re
from collections.abc import Mapping
from typing import Any

import jsonschema
from hypothesis import strategies as st

Schema = Mapping[str, Any]
_WIDTH = 3  # most items of a list or a map, most optional fields of a deep object
_DEEP = 2  # levels below which an object gets only some of its optional fields
# Anything printable, which is what YAML can hold; quotes, colons, braces and line breaks are where templates break.
_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cn", "Co"]) | st.sampled_from("\n'\"{}:#&*!|>%@`-\\"),
    max_size=20,
)


def values_of(schema: Schema, root: Schema, depth: int = 0) -> st.SearchStrategy[Any]:
    """Returns a strategy for what ``schema`` allows; its ``$ref`` are looked up in ``root``."""
    if "$ref" in schema:
        found: Schema = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return values_of(found, root, depth)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        rest = {name: value for name, value in schema.items() if name != "anyOf"}  # holds for every choice, such as a pattern
        return st.one_of([values_of({**rest, **choice}, root, depth) for choice in schema["anyOf"]])
    if isinstance(schema["type"], list):
        return st.one_of([values_of({**schema, "type": kind}, root, depth) for kind in schema["type"]])
    return _of_type(schema["type"], schema, root, depth)


def _of_type(kind: str, schema: Schema, root: Schema, depth: int) -> st.SearchStrategy[Any]:
    if kind == "object":
        return _object(schema, root, depth)
    if kind == "array":
        most = min(_WIDTH, schema.get("maxItems", _WIDTH))
        return st.lists(values_of(schema["items"], root, depth + 1), min_size=schema.get("minItems", 0), max_size=most)
    plain = {"string": _string, "integer": _integer, "number": _number}
    return plain[kind](schema) if kind in plain else {"boolean": st.booleans(), "null": st.none()}[kind]


def _integer(schema: Schema) -> st.SearchStrategy[int]:
    least = schema.get("minimum", schema.get("exclusiveMinimum", -(2**31)) + 1)
    return st.integers(least, schema.get("maximum", 2**31 - 1))


def _number(schema: Schema) -> st.SearchStrategy[float]:
    least, most = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    exclude = "exclusiveMinimum" in schema
    return st.floats(least, most, exclude_min=exclude, allow_nan=False, allow_infinity=False, width=32)


def _string(schema: Schema) -> st.SearchStrategy[str]:
    longest, least = schema.get("maxLength", 10**6), schema.get("minLength", 0)
    found = st.from_regex(re.compile(schema["pattern"], re.ASCII), fullmatch=True) if "pattern" in schema else _TEXT
    return found.filter(lambda text: least <= len(text) <= longest)


def _object(schema: Schema, root: Schema, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in schema:
        values = values_of(schema.get("additionalProperties") or {"type": "string"}, root, depth + 1)
        keys = (
            values_of(schema["propertyNames"], root) if "propertyNames" in schema else st.text("abcxyz", min_size=1, max_size=9)
        )
        return st.dictionaries(keys, values, max_size=_WIDTH)
    fields = {name: values_of(field, root, depth + 1) for name, field in schema["properties"].items()}
    required = set(schema.get("required", ()))
    optional = sorted(set(fields) - required)
    most = len(optional) if depth < _DEEP else min(_WIDTH, len(optional))
    chosen = st.lists(st.sampled_from(optional), max_size=most, unique=True) if optional else st.just([])
    drawn = chosen.flatmap(lambda names: st.fixed_dictionaries({name: fields[name] for name in [*sorted(required), *names]}))
    if "if" not in schema:
        return drawn
    conditional = jsonschema.Draft7Validator({**root, **schema, "required": sorted(required)})
    return drawn.filter(conditional.is_valid)
