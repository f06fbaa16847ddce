"""Names for model versions: aliases that move by compare-and-swap and remember every move."""

import getpass
import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import EllipsisType
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from historay.errors import BundleError, ConfigError, Conflict, NotFound
from historay.models.bundle import PROMOTIONS, bundle_prefix, read_spec
from historay.models.gate import own_bounds
from historay.storage import Store

PRODUCTION = "production"
CANDIDATE = "candidate"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ATTEMPTS = 50
# Hundreds of numbers of model.json that tell a reader nothing.
_ARRAYS: Any = {
    "input_gate": {"stain_mean", "stain_axes", "stain_variances", "feature_variances", "foreign_colours"},
    "drift_reference": {"edges", "counts"},
}


class Move(BaseModel):
    """One change of an alias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    previous: str | None
    when: str  # ISO 8601, UTC
    who: str  # account name
    reason: str
    gate: "Gate | None" = None  # None: no gate was asked
    back: bool = False  # by a rollback


class Gate(BaseModel):
    """What the promotion gate held against a move and by which bounds, and why it was made all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overridden: tuple[str, ...] = ()  # refusals; none: every check passed
    why: str | None = None
    policy: dict[str, Any] = {}  # GatePolicy
    checks: tuple[str, ...] = ()  # what was found, and what was wanted


class Terms(NamedTuple):
    """What else there is to a move of an alias."""

    gate: Gate | None = None
    back: bool = False
    expected: str | EllipsisType | None = ...  # the only version that it may be moved from; None: it names none yet


class Alias(BaseModel):
    """The content of ``aliases/<name>/<alias>.json``: the version it names now, and all its moves, oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    history: tuple[Move, ...]


_FREE = Terms()


@dataclass
class Versions:
    """What the registry knows of one model name."""

    versions: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)  # alias to version


def list_models(store: Store) -> dict[str, Versions]:
    """Returns every model name with its versions and aliases."""
    models: dict[str, Versions] = defaultdict(Versions)
    for item in store.list("models"):
        _, name, version, *file = item.key.split("/")
        if file == ["bundle.json"]:
            models[name].versions.append(version)
    for item in store.list("aliases"):
        _, name, file_name = item.key.split("/")
        alias = file_name.removesuffix(".json")
        models[name].aliases[alias] = Alias.model_validate_json(store.read(item.key)).version
    return dict(sorted(models.items()))


def resolve(store: Store, reference: str) -> tuple[str, str]:
    """Turns ``name``, ``name@alias`` or ``name@version`` into (name, version); ``name`` is production, else candidate."""
    name, _, wanted = reference.partition("@")
    for alias in [wanted] if wanted else [PRODUCTION, CANDIDATE]:
        try:
            return name, _read_alias(store, name, alias)[0].version
        except NotFound:
            if wanted and store.exists(f"{bundle_prefix(name, wanted)}/bundle.json"):
                return name, wanted
    known = list_models(store).get(name)
    if known is None:
        raise BundleError(f"{store.uri}: no model {name!r}; there is {', '.join(list_models(store)) or 'none'}")
    there = ", ".join([*known.aliases, *known.versions])
    raise BundleError(f"{store.uri}: model {name!r} has no {wanted or 'production or candidate'}; it has {there}")


def set_alias(
    store: Store,
    name: str,
    alias: str,
    version: str,
    reason: str,
    terms: Terms = _FREE,
) -> Alias:
    """Moves an alias to a version that exists and adds the move to its history, whatever others do at the same time.

    Raises Conflict if it no longer names what ``terms`` expect.
    """
    if not reason.strip():
        raise ConfigError("--reason is empty: say why; it stays in the alias's history")
    for part in (name, alias):
        if not _NAME.fullmatch(part):
            raise ConfigError(f"{part!r}: names consist of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit")
    if not store.exists(f"{bundle_prefix(name, version)}/bundle.json"):
        raise BundleError(f"{store.uri}: no model {name}@{version}; historay models list shows what there is")
    for _ in range(_ATTEMPTS):
        try:
            current, tag = _read_alias(store, name, alias)
        except NotFound:
            current, tag = None, None
        previous = current.version if current else None
        if terms.expected not in (..., previous):
            raise Conflict(f"{name}@{alias} was moved to {previous} since it was {terms.expected or 'unset'}; try again")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        move = Move(
            version=version, previous=previous, when=now, who=_account(), reason=reason, gate=terms.gate, back=terms.back
        )
        moved = Alias(version=version, history=(*(current.history if current else ()), move))
        try:
            store.swap(_alias_key(name, alias), moved.model_dump_json(indent=2).encode(), expected=tag)
        except Conflict:
            continue
        return moved
    raise Conflict(f"{store.locate(_alias_key(name, alias))}: others changed it {_ATTEMPTS} times in a row; try again later")


def rollback(store: Store, name: str, alias: str, reason: str) -> Alias:
    """Moves an alias back to the version that it named before the present one, and once more to the one before that."""
    try:
        current, _ = _read_alias(store, name, alias)
    except NotFound:
        raise BundleError(f"{store.uri}: model {name!r} has no alias {alias!r}") from None
    before = _before(current)
    if not before:
        raise BundleError(
            f"{store.uri}: {name}@{alias} has named no other version than {current.version}; nothing to go back to"
        )
    moved = set_alias(store, name, alias, before[-1], reason, Terms(back=True, expected=current.version))
    if alias == PRODUCTION:
        write_promotions(store, name, moved.version)
    return moved


def _before(alias: Alias) -> list[str]:
    """Returns the versions that lie below the present one, the last one on top: what was left by a rollback is gone."""
    stack: list[str] = []
    for move in alias.history:
        while move.back and stack and stack[-1] != move.version:
            stack.pop()
        if not stack or stack[-1] != move.version:
            stack.append(move.version)
    return stack[:-1]


def production_of(store: Store, name: str) -> str | None:
    """Returns the version in production; None if there is none yet."""
    try:
        return _read_alias(store, name, PRODUCTION)[0].version
    except NotFound:
        return None


def write_promotions(store: Store, name: str, version: str) -> None:
    """Writes PROMOTIONS.md beside a version's model card: when, by whom and why it went into production, gate and all.

    The card itself is sealed in the bundle; this is made again from the alias's history at each promotion, and the endpoint
    shows it at the card's end.
    """
    moves = [move for move in _read_alias(store, name, PRODUCTION)[0].history if move.version == version]
    lines = [f"# Promotions of {name}@{version}", ""]
    for move in moves:
        lines.append(f"- {move.when}, by {move.who}: {move.reason}")
        if move.gate is not None and (own := own_bounds(move.gate.policy)):
            lines.append(f"  - bounds other than the defaults: {own}")
        if move.gate is not None and move.gate.overridden:
            lines += [f"  - **FORCED past the gate**: {move.gate.why}"]
            lines += [f"  - refused by {refusal}" for refusal in move.gate.overridden]
    store.write(f"{bundle_prefix(name, version)}/{PROMOTIONS}", ("\n".join(lines) + "\n").encode())


def describe_model(store: Store, reference: str) -> dict[str, Any]:
    """Returns what model.json says but its arrays, the history of each alias that names it, and its own promotions."""
    name, version = resolve(store, reference)
    aliases = {}
    for alias, named in list_models(store)[name].aliases.items():
        if named == version:
            aliases[alias] = [move.model_dump() for move in _read_alias(store, name, alias)[0].history]
    spec = read_spec(store, name, version).model_dump(mode="json", exclude=_ARRAYS)
    return {"version": version, **spec, "aliases": aliases, "promotions": _promotions(store, name, version)}


def _promotions(store: Store, name: str, version: str) -> list[dict[str, Any]]:
    try:
        history = _read_alias(store, name, PRODUCTION)[0].history
    except NotFound:
        return []
    return [move.model_dump() for move in history if move.version == version]


def _alias_key(name: str, alias: str) -> str:
    return f"aliases/{name}/{alias}.json"


def _read_alias(store: Store, name: str, alias: str) -> tuple[Alias, str]:
    data, tag = store.read_tagged(_alias_key(name, alias))
    return Alias.model_validate_json(data), tag


def _account() -> str:
    """The account's name; a pod with a bare uid may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
