"""API keys: who may ask the endpoint. Only hashes are kept, in a file that may change while replicas run.

A key is 256 random bits, so that plain SHA-256 of it is enough: there is nothing to guess, and each request pays microseconds.
"""

import fcntl
import hashlib
import hmac
import math
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from historay.config import Config, Name
from historay.errors import ConfigError
from historay.log import log_event

API_KEY = "HISTORAY_API_KEY"
_PREFIX = "historay_"  # by which a scanner of repositories finds a key that leaked
_RECHECK_S = 1.0
_Stamp = tuple[int, int, int]
_UNSEEN: _Stamp = (0, 0, 0)  # of no file


class StoredKey(Config):
    """One line of the keys file."""

    id: Name
    """Names the key's holder in the audit log: a system, not a person."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the key, hexadecimal."""
    created: str = ""
    """When it was made, ISO 8601, UTC."""


class KeysFile(Config):
    """The keys file, YAML or JSON."""

    keys: tuple[StoredKey, ...]
    """Every key that is let in; an empty list lets nobody in."""

    @model_validator(mode="after")
    def _each_id_once(self) -> Self:
        ids = [key.id for key in self.keys]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"key id {', '.join(twice)} stands there twice; give each key an id of its own")
        return self


class KeyRing:
    """The keys of one endpoint; those of a file follow the file within a second, without a restart."""

    def __init__(
        self, keys: tuple[StoredKey, ...], path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys, self._path, self._clock = keys, path, clock
        self._stamp: _Stamp | None = None
        self._checked = clock()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Sent to a replica on another node, whose clock counts from its own start, and whose file may be another by now.
        self.__dict__.update(state, _checked=-math.inf, _stamp=_UNSEEN)

    @classmethod
    def from_file(cls, path: str | Path, clock: Callable[[], float] = time.monotonic) -> Self:
        """Reads a keys file; raises ConfigError if it is missing, broken or without any key."""
        file = Path(path).absolute()
        stamp = _stamp(file)  # before the file is read: a change in between is then seen as one
        ring = cls(read_keys(file), file, clock)
        if not ring._keys:
            raise ConfigError(f"{path}: no key in it; make one with historay keys new NAME --file {path}")
        ring._stamp = stamp
        return ring

    @classmethod
    def from_environment(cls) -> Self | None:
        """Returns the ring of the one key in HISTORAY_API_KEY, or None where that is not set."""
        key = os.environ.get(API_KEY)
        return cls.of(environment=key) if key else None

    @classmethod
    def of(cls, **keys: str) -> Self:
        """Makes a ring of keys by id, for one process."""
        return cls(tuple(StoredKey(id=name, sha256=digest_key(key.encode())) for name, key in keys.items()))

    def identify(self, key: bytes) -> str | None:
        """Returns the id of a key, or None for an unknown one; the time taken does not tell which, or how near."""
        self._follow_file()
        digest, found = digest_key(key), None
        for stored in self._keys:
            if hmac.compare_digest(stored.sha256, digest):
                found = stored.id
        return found

    def _follow_file(self) -> None:
        """Takes up a changed file as a whole; a broken or missing one changes nothing and is logged once."""
        if self._path is None or self._clock() - self._checked < _RECHECK_S:
            return
        self._checked = self._clock()
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except ConfigError as error:
            log_event("keys file broken: the last good keys stay in force", error=error)
            return
        log_event("keys read again", num_keys=len(self._keys))


def open_keys(path: str | None) -> KeyRing | None:
    """Returns the ring of the keys file where one is named, else of HISTORAY_API_KEY, else None: no key is asked for."""
    return KeyRing.from_file(path) if path else KeyRing.from_environment()


def digest_key(key: bytes) -> str:
    """Returns SHA-256 of an API key, hexadecimal."""
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> tuple[StoredKey, ...]:
    """Reads a keys file; its ConfigError names fields but shows no value: somebody may have written a key itself there."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; make it with historay keys new") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"{path}: neither YAML nor JSON; make it with historay keys new") from None
    try:
        return KeysFile.model_validate(values).keys
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{path}: {wrong}; make it with historay keys new") from None


def new_key(path: Path, key_id: str) -> str:
    """Makes a key, adds its hash to the file, which is made if need be, and returns the key: it is kept nowhere."""
    key = _PREFIX + secrets.token_urlsafe(32)
    made = {"id": key_id, "sha256": digest_key(key.encode()), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    with _changing(path) as keys:
        if any(stored.id == key_id for stored in keys):
            raise ConfigError(
                f"{path}: there is a key {key_id} already; choose another id, and revoke the old one when it is idle"
            )
        keys.append(StoredKey.from_mapping(made, f"key {key_id}"))
    return key


def revoke_key(path: Path, key_id: str) -> None:
    """Takes a key's hash out of the file; raises ConfigError if no key has that id."""
    with _changing(path) as keys:
        kept = [stored for stored in keys if stored.id != key_id]
        if len(kept) == len(keys):
            raise ConfigError(f"{path}: no key {key_id}; there are {', '.join(stored.id for stored in keys) or 'none'}")
        keys[:] = kept


@contextmanager
def _changing(path: Path) -> Iterator[list[StoredKey]]:
    """Yields the keys to be changed, under a lock beside the file; they then replace the file in one step."""
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        text = yaml.safe_dump({"keys": [key.model_dump() for key in keys]}, sort_keys=False)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # readable by its owner alone
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fsync(file.fileno())
        Path(temporary).replace(path)


def _stamp(path: Path) -> _Stamp | None:
    """What changes when a file does: a Kubernetes Secret gets another inode, an editor another time."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
