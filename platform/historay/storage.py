"""One store, local folder or S3 bucket: bytes under keys, written whole or not at all, changed by compare-and-swap.

A key is a relative path with forward slashes, e.g. ``models/demo/3f2a/model.json``.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import boto3
import pyarrow.fs
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError

from historay.errors import Conflict, NotFound, StorageError, TooLarge, Unreadable
from historay.log import log_event

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
_TEMPORARY = ".tmp-"
_LOCK = ".lock"
# Errors of one file; any other, such as a stale mount, is taken for a failure of the whole store.
_ONE_FILE_ONLY = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}


class StoredObject(NamedTuple):
    """One listed object: its key relative to the store's root, and its size in bytes."""

    key: str
    size: int


class Store(Protocol):
    """What both kinds of store can do; every method raises StorageError where the medium fails."""

    uri: str

    def read(self, key: str, at_most: int | None = None) -> bytes:
        """Returns the object's bytes; NotFound if there is none, TooLarge, unread, if it has more bytes than ``at_most``."""

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """Returns the object's bytes with the tag that ``swap`` compares."""

    def write(self, key: str, data: bytes) -> None:
        """Writes the object whole: readers see the old bytes or the new ones, never a part."""

    def swap(self, key: str, data: bytes, expected: str | None) -> None:
        """Writes only if the object still has the tag ``expected`` (None: does not exist yet); else raises Conflict."""

    def exists(self, key: str) -> bool:
        """Tells whether an object stands under the key."""

    def delete(self, key: str) -> None:
        """Removes the object; does nothing if there is none."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yields all objects below the prefix (a folder: ``a/b`` means ``a/b/...``), sorted by key."""

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Returns a pyarrow file system and the store's root in it, for Parquet and Ray."""

    def locate(self, key: str) -> str:
        """Returns the object's full address, for messages."""


def open_store(uri: str) -> Store:
    """Opens the store at a local path, a file:// URI or ``s3://bucket[/prefix]``; endpoint and keys come from AWS_*."""
    if uri.startswith("s3://"):
        return S3Store(uri)
    if "://" in uri and not uri.startswith("file://"):
        raise StorageError(f"{uri}: unknown kind of store; use a local path or s3://bucket/prefix")
    return LocalStore(uri)


def split_uri(uri: str) -> tuple[str, str]:
    """Splits a file's address into (store URI of its folder, key): ``s3://b/x/y.csv`` gives ``s3://b/x``, ``y.csv``."""
    folder, slash, name = uri.rpartition("/")
    if not name:
        raise StorageError(f"{uri}: names a folder where a file is needed")
    return (folder or "/") if slash else ".", name


def read_uri(uri: str) -> bytes:
    """Returns the bytes of one file at a local path or an s3:// URI."""
    folder, name = split_uri(uri)
    return open_store(folder).read(name)


def _checked(key: str) -> str:
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise StorageError(f"key {key!r} leaves the store; keys are relative paths without '..'")
    return key


def _refuse_large(where: str, num_bytes: int, at_most: int | None) -> None:
    if at_most is not None and num_bytes > at_most:
        raise TooLarge(f"{where}: {num_bytes} bytes, at most {at_most} are allowed")


def _refuse_listing(error: OSError) -> None:
    """A folder may go while its parent is listed; one that refuses to be listed would lose its files without a word."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise StorageError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _size(path: Path) -> int | None:
    """Returns a file's bytes, those of the link itself where it leads nowhere, and None if the file went in the meantime."""
    try:
        with contextlib.suppress(OSError):
            return path.stat().st_size
        return path.lstat().st_size
    except OSError as error:
        _refuse_listing(error)
    return None


class LocalStore:
    """A store in a folder; writes go to a temporary name in the same folder and are renamed."""

    def __init__(self, uri: str) -> None:
        self.root = Path(uri.removeprefix("file://")).expanduser().absolute()
        self.uri = str(self.root)

    def locate(self, key: str) -> str:
        return str(self.root / _checked(key))

    def read(self, key: str, at_most: int | None = None) -> bytes:
        path = self.root / _checked(key)
        try:
            with path.open("rb") as file:
                _refuse_large(str(path), os.fstat(file.fileno()).st_size, at_most)
                return file.read()
        except FileNotFoundError:
            raise NotFound(f"{path}: no such file") from None
        except OSError as error:
            kind = Unreadable if error.errno in _ONE_FILE_ONLY else StorageError
            raise kind(f"{path}: cannot be read: {error.strerror}") from error

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def write(self, key: str, data: bytes) -> None:
        path = self.root / _checked(key)
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def swap(self, key: str, data: bytes, expected: str | None) -> None:
        path = self.root / _checked(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}{_LOCK}").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = self.read_tagged(key)[1] if path.exists() else None
            if current != expected:
                raise Conflict(f"{path}: changed by somebody else in the meantime; read it again and retry")
            self.write(key, data)

    def exists(self, key: str) -> bool:
        return (self.root / _checked(key)).is_file()

    def delete(self, key: str) -> None:
        (self.root / _checked(key)).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        top = self.root / _checked(prefix) if prefix else self.root
        found = []
        for folder, _, names in os.walk(top, onerror=_refuse_listing):
            for name in names:
                path = Path(folder, name)
                if name.startswith(_TEMPORARY) or name.endswith(_LOCK) or (size := _size(path)) is None:
                    continue
                found.append(StoredObject(path.relative_to(self.root).as_posix(), size))
        yield from sorted(found)

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.LocalFileSystem(), str(self.root)


class S3Store:
    """A store below a prefix of an S3 bucket; compare-and-swap is S3's conditional put (If-Match, If-None-Match)."""

    def __init__(self, uri: str) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").strip("/").partition("/")
        if not self.bucket:
            raise StorageError(f"{uri}: names no bucket; use s3://bucket/prefix")
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{self.bucket}/{prefix}".rstrip("/")

    def locate(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._full(key)}"

    def read(self, key: str, at_most: int | None = None) -> bytes:
        return self._get(key, at_most)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        return self._get(key, None)

    def write(self, key: str, data: bytes) -> None:
        try:
            _s3_client().put_object(Bucket=self.bucket, Key=self._full(key), Body=data)
        except (ClientError, BotoCoreError) as error:
            raise self._explained(error, key) from error

    def swap(self, key: str, data: bytes, expected: str | None) -> None:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            _s3_client().put_object(Bucket=self.bucket, Key=self._full(key), Body=data, **condition)  # type: ignore[arg-type]
        except (ClientError, BotoCoreError) as error:
            explained = self._explained(error, key)
            # Where the answer to our first attempt was lost, the client's next one meets our own bytes.
            if not isinstance(explained, Conflict) or self.read(key) != data:
                raise explained from error

    def exists(self, key: str) -> bool:
        try:
            _s3_client().head_object(Bucket=self.bucket, Key=self._full(key))
        except (ClientError, BotoCoreError) as error:
            explained = self._explained(error, key)
            if isinstance(explained, NotFound):
                return False
            raise explained from error
        return True

    def delete(self, key: str) -> None:
        try:
            _s3_client().delete_object(Bucket=self.bucket, Key=self._full(key))
        except (ClientError, BotoCoreError) as error:
            raise self._explained(error, key) from error

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        below = f"{self._full(prefix).rstrip('/')}/" if prefix else self.prefix
        try:
            for page in _s3_client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):
                        yield StoredObject(item["Key"].removeprefix(self.prefix), item["Size"])
        except (ClientError, BotoCoreError) as error:
            raise self._explained(error, prefix or "*") from error

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        scheme, _, host = endpoint.rpartition("://")
        filesystem = pyarrow.fs.S3FileSystem(
            endpoint_override=host or None,
            scheme=scheme or "https",
            region=_s3_client().meta.region_name,
        )
        return filesystem, f"{self.bucket}/{self.prefix}".rstrip("/")

    def _get(self, key: str, at_most: int | None) -> tuple[bytes, str]:
        try:
            answer = _s3_client().get_object(Bucket=self.bucket, Key=self._full(key))
            with contextlib.closing(answer["Body"]) as body:
                _refuse_large(self.locate(key), answer["ContentLength"], at_most)
                return body.read(), answer["ETag"]
        except (ClientError, BotoCoreError) as error:
            raise self._explained(error, key) from error

    def _full(self, key: str) -> str:
        return self.prefix + _checked(key)

    def _explained(self, error: ClientError | BotoCoreError, key: str) -> StorageError:
        where = self.locate(key)
        if not isinstance(error, ClientError):
            return StorageError(f"{where}: {error}; check AWS_ENDPOINT_URL and the credentials")
        code = error.response.get("Error", {}).get("Code", "?")
        if code in _S3_KEY_REFUSED:
            return StorageError(f"{where}: refused ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        kind, text = _S3_CODES.get(code, (StorageError, f"S3 answered {code}: {error}"))
        return kind(f"{where}: {text}")


class PatientStore:
    """A store that tries again while another one fails, for work of hours that must outlive an outage of minutes.

    Each call is made up to 6 times with doubling pauses, 15 s in all; with S3 that comes to minutes, since its own client
    spends half a minute on a server that does not answer. What is absent, denied or changed is told at once.
    """

    def __init__(self, store: Store, num_attempts: int = 6, first_wait_s: float = 0.5) -> None:
        self.uri = store.uri
        self.locate, self.arrow, self.swap = store.locate, store.arrow, store.swap  # a repeated swap meets its own first one
        self._store, self._num_attempts, self._first_wait_s = store, num_attempts, first_wait_s

    def read(self, key: str, at_most: int | None = None) -> bytes:
        return self._tried(lambda: self._store.read(key, at_most))

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        return self._tried(lambda: self._store.read_tagged(key))

    def write(self, key: str, data: bytes) -> None:
        self._tried(lambda: self._store.write(key, data))

    def exists(self, key: str) -> bool:
        return self._tried(lambda: self._store.exists(key))

    def delete(self, key: str) -> None:
        self._tried(lambda: self._store.delete(key))

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        yield from self._tried(lambda: sorted(self._store.list(prefix)))

    def _tried(self, call: Callable[[], T]) -> T:
        for attempt in range(1, self._num_attempts):
            try:
                return call()
            except (NotFound, Unreadable, Conflict):
                raise
            except StorageError as error:
                log_event("WARNING the store fails, trying again", attempt=attempt, of=self._num_attempts, error=error)
                time.sleep(self._first_wait_s * 2 ** (attempt - 1))
        return call()


_S3_KEY_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
_CHANGED = (Conflict, "changed by somebody else in the meantime; read it again and retry")
_ABSENT = (NotFound, "no such object")
_DENIED = (Unreadable, "access denied to this key; check the policy of the bucket and of the object")
_S3_CODES: dict[str, tuple[type[StorageError], str]] = {
    "NoSuchKey": _ABSENT,
    "404": _ABSENT,
    "NotFound": _ABSENT,
    "PreconditionFailed": _CHANGED,
    "412": _CHANGED,
    "ConditionalRequestConflict": _CHANGED,
    "409": _CHANGED,
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "NoSuchBucket": (StorageError, "the bucket does not exist"),
}


@functools.cache
def _s3_client() -> "S3Client":
    """One client per process (boto3 clients are thread-safe), with retries; built at first use, never at import."""
    # Checksums only where S3 demands them: many S3-compatible servers do not know the newer trailing ones.
    retries = BotoConfig(
        retries={"mode": "standard", "total_max_attempts": 8},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    client: S3Client = session.client("s3", config=retries, region_name=session.region_name or "us-east-1")
    return client
