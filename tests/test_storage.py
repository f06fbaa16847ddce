"""The store keeps its promises on a local folder and on a real S3 server alike."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lossy import losing_one_answer
from processes import UNPRIVILEGED

from historay.errors import Conflict, NotFound, StorageError, TooLarge, Unreadable
from historay.storage import LocalStore, PatientStore, Store, open_store, read_uri, split_uri


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request.getfixturevalue("s3_uri") if request.param == "s3" else str(tmp_path / "store"))


def test_what_was_written_is_read_back(any_store: Store) -> None:
    any_store.write("a/b.bin", b"\x00\xff")
    assert any_store.read("a/b.bin") == b"\x00\xff"
    assert any_store.exists("a/b.bin")


def test_an_object_of_more_bytes_than_allowed_is_refused_unread(any_store: Store) -> None:
    any_store.write("a", bytes(100))
    assert any_store.read("a", at_most=100) == bytes(100)
    with pytest.raises(TooLarge, match="a: 100 bytes, at most 99 are allowed"):
        any_store.read("a", at_most=99)
    assert any_store.read("a") == bytes(100), "the connection is as good as before"


def test_a_missing_object_is_named_in_the_error(any_store: Store) -> None:
    with pytest.raises(NotFound, match=r"a/missing\.json"):
        any_store.read("a/missing.json")
    assert not any_store.exists("a/missing.json")


def test_listing_is_sorted_and_stays_below_the_prefix(any_store: Store) -> None:
    for key in ("runs/b/2", "runs/b/1", "runs/bb/1", "models/x"):
        any_store.write(key, b"x")
    assert [item.key for item in any_store.list("runs/b")] == ["runs/b/1", "runs/b/2"]
    assert {item.key for item in any_store.list()} == {"runs/b/1", "runs/b/2", "runs/bb/1", "models/x"}
    assert list(any_store.list("nothing")) == []


def test_files_that_go_while_a_folder_is_listed_are_left_out(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a/1", "a/2", "b/1"):
        store.write(key, b"x")
    walk = os.walk

    def walk_beside_another_process(top: str, onerror: Any = None) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, names in walk(top, onerror=onerror):
            shutil.rmtree(Path(store.uri, "b"), ignore_errors=True)
            if "1" in names:
                store.delete("a/1")
            yield folder, folders, names

    monkeypatch.setattr("os.walk", walk_beside_another_process)
    assert [item.key for item in store.list()] == ["a/2"]


def test_a_link_that_leads_nowhere_is_listed_and_cannot_be_read(store: LocalStore) -> None:
    store.write("a/1", b"x")
    Path(store.locate("a/broken")).symlink_to("gone")
    Path(store.locate("a/circle")).symlink_to("circle")
    assert [item.key for item in store.list()] == ["a/1", "a/broken", "a/circle"]
    with pytest.raises(NotFound):
        store.read("a/broken")
    with pytest.raises(Unreadable):
        store.read("a/circle")


@pytest.mark.parametrize(("mode", "named"), [(0o000, "secret"), (0o400, "secret/1")])
def test_a_folder_that_cannot_be_listed_is_named(store: LocalStore, mode: int, named: str) -> None:
    store.write("a/1", b"x")
    store.write("secret/1", b"x")
    Path(store.locate("secret")).chmod(mode)
    try:
        listed = subprocess.run(
            [*UNPRIVILEGED, sys.executable, "-c", _LISTING, store.uri], capture_output=True, text=True, check=False
        )
    finally:
        Path(store.locate("secret")).chmod(0o700)
    assert f"StorageError: {store.locate(named)}: cannot be listed: Permission denied" in listed.stderr
    assert listed.stdout == ""


_LISTING = "import sys; from historay.storage import LocalStore; print(list(LocalStore(sys.argv[1]).list()))"


def test_deleting_twice_is_no_error(any_store: Store) -> None:
    any_store.write("x", b"1")
    any_store.delete("x")
    any_store.delete("x")
    assert not any_store.exists("x")


def test_swap_refuses_an_object_that_changed_in_between(any_store: Store) -> None:
    any_store.swap("alias.json", b"1", expected=None)
    data, tag = any_store.read_tagged("alias.json")
    any_store.swap("alias.json", b"2", expected=tag)
    with pytest.raises(Conflict, match=r"alias\.json"):
        any_store.swap("alias.json", b"3", expected=tag)
    with pytest.raises(Conflict):
        any_store.swap("alias.json", b"3", expected=None)
    assert (data, any_store.read("alias.json")) == (b"1", b"2")


def test_of_many_concurrent_swaps_none_is_lost(store: LocalStore) -> None:
    # On disk only: S3 promises this itself, and versitygw over a folder checks and renames in two steps.
    store.write("count", b"0")

    def add_one() -> None:
        while True:
            data, tag = store.read_tagged("count")
            try:
                store.swap("count", str(int(data) + 1).encode(), expected=tag)
            except Conflict:
                continue
            return

    threads = [threading.Thread(target=add_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("count") == b"8"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x"])
def test_a_key_cannot_leave_the_store(any_store: Store, key: str) -> None:
    with pytest.raises(StorageError, match="leaves the store"):
        any_store.read(key)


def test_arrow_reads_what_the_store_wrote(any_store: Store) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1, 2]}), sink)
    any_store.write("t/a.parquet", sink.getvalue().to_pybytes())
    filesystem, root = any_store.arrow()
    assert pq.read_table(f"{root}/t/a.parquet", filesystem=filesystem).to_pydict() == {"x": [1, 2]}


def test_a_failed_write_leaves_the_old_bytes_and_no_litter(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a", b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        store.write("a", b"new")
    assert store.read("a") == b"old"
    assert [path.name for path in Path(store.uri).iterdir()] == ["a"]


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(StorageError, match="gs://bucket: unknown kind of store"):
        open_store("gs://bucket")


@pytest.mark.parametrize(
    ("uri", "parts"), [("s3://b/x/y.csv", ("s3://b/x", "y.csv")), ("y.csv", (".", "y.csv")), ("/y.csv", ("/", "y.csv"))]
)
def test_a_file_address_is_split_into_folder_and_key(uri: str, parts: tuple[str, str]) -> None:
    assert split_uri(uri) == parts


def test_a_file_is_read_by_its_address(any_store: Store) -> None:
    any_store.write("x/y.txt", b"hello")
    assert read_uri(any_store.locate("x/y.txt")) == b"hello"


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_server: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket/x/a: the bucket does not exist"):
        open_store("s3://no-such-bucket/x").write("a", b"")


@pytest.mark.s3
def test_a_swap_whose_answer_was_lost_is_no_conflict_with_itself(
    s3_server: str, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from historay import storage

    with losing_one_answer(int(s3_server.rpartition(":")[2]), b"PUT") as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        storage._s3_client.cache_clear()
        try:
            open_store(s3_uri).swap("alias.json", b"1", expected=None)
            with pytest.raises(Conflict):
                open_store(s3_uri).swap("alias.json", b"2", expected=None)
        finally:
            storage._s3_client.cache_clear()


@pytest.mark.s3
def test_a_wrong_secret_is_explained(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from historay import storage

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage._s3_client.cache_clear()
    try:
        with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY"):
            open_store(s3_uri).read("a")
    finally:
        storage._s3_client.cache_clear()


class FailingStore(LocalStore):
    """A folder on a medium that fails a number of times first."""

    def __init__(self, uri: str, num_failures: int) -> None:
        super().__init__(uri)
        self.num_calls, self.num_failures = 0, num_failures

    def _fail(self) -> None:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise StorageError("the medium is gone for a moment")

    def read(self, key: str, at_most: int | None = None) -> bytes:
        self._fail()
        return super().read(key, at_most)

    def write(self, key: str, data: bytes) -> None:
        self._fail()
        super().write(key, data)


@pytest.mark.parametrize(("num_failures", "succeeds"), [(5, True), (6, False)])
def test_a_patient_store_tries_six_times(tmp_path: Path, num_failures: int, succeeds: bool) -> None:
    failing = FailingStore(str(tmp_path), num_failures)
    patient = PatientStore(failing, first_wait_s=0.0)
    if succeeds:
        patient.write("a", b"1")
        assert failing.read("a") == b"1"
    else:
        with pytest.raises(StorageError, match="gone for a moment"):
            patient.write("a", b"1")
        assert failing.num_calls == 6


def test_a_patient_store_does_not_wait_for_what_is_absent(tmp_path: Path) -> None:
    failing = FailingStore(str(tmp_path), 0)
    with pytest.raises(NotFound):
        PatientStore(failing).read("absent")
    assert failing.num_calls == 1
