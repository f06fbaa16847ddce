"""Keys are kept as hashes, change while the endpoint runs, and a broken file locks nobody out or in."""

import hashlib
import hmac
import json
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from historay.errors import ConfigError
from historay.serving.keys import KeyRing, digest_key, new_key, open_keys, read_keys, revoke_key
from historay.serving.rate import RateLimit


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __reduce__(self) -> tuple[type["Clock"], tuple[()]]:
        return Clock, ()  # as another machine's, which counts from its own start


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_the_file_holds_no_key_and_only_its_owner_reads_it(file: Path) -> None:
    key = new_key(file, "lis")
    text = file.read_text()
    assert key not in text
    assert key.removeprefix("historay_") not in text
    assert yaml.safe_load(text)["keys"][0]["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert file.stat().st_mode & 0o777 == 0o600


def test_each_key_is_known_by_its_id_and_nothing_else_is_let_in(file: Path) -> None:
    keys = {name: new_key(file, name) for name in ("lis", "archive", "scanner")}
    ring = KeyRing.from_file(file)
    assert {name: ring.identify(key.encode()) for name, key in keys.items()} == {name: name for name in keys}
    for wrong in (b"", b"lis", keys["lis"][:-1].encode(), digest_key(keys["lis"].encode()).encode(), b"\xff" * 9000):
        assert ring.identify(wrong) is None


def test_every_hash_is_compared_whichever_key_is_sent(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [new_key(file, f"k{number}") for number in range(5)]
    ring = KeyRing.from_file(file)
    compared: list[str] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append(a), real(a, b))[1])
    for key in (keys[0], keys[4], "wrong"):
        compared.clear()
        ring.identify(key.encode())
        assert len(compared) == 5


def test_a_new_key_is_let_in_and_a_revoked_one_locked_out_without_a_restart(file: Path) -> None:
    clock, old = Clock(), new_key(file, "old")
    ring = KeyRing.from_file(file, clock)
    new = new_key(file, "new")
    assert ring.identify(new.encode()) is None  # within the second
    clock.now += 1.5
    assert (ring.identify(old.encode()), ring.identify(new.encode())) == ("old", "new")
    revoke_key(file, "old")
    clock.now += 1.5
    assert (ring.identify(old.encode()), ring.identify(new.encode())) == (None, "new")
    revoke_key(file, "new")
    clock.now += 1.5
    assert ring.identify(new.encode()) is None  # an empty list is a valid one: nobody


@pytest.mark.parametrize(
    "broken", [b"keys: [", b"\xff\xfe\x00", b"[]", b"keys: [{id: a}]", b"", b"keys: [{id: A b, sha256: x}]", None]
)
def test_a_broken_file_keeps_the_last_good_keys_and_says_so_once(
    file: Path, broken: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock, key = Clock(), new_key(file, "lis")
    ring, good = KeyRing.from_file(file, clock), file.read_bytes()
    file.unlink() if broken is None else file.write_bytes(broken)
    with caplog.at_level(logging.INFO, logger="historay"):
        for _ in range(3):
            clock.now += 1.5
            assert ring.identify(key.encode()) == "lis"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["keys file broken"]
    file.write_bytes(good.replace(b"id: lis", b"id: lab"))
    clock.now += 1.5
    assert ring.identify(key.encode()) == "lab"


def test_a_secret_mounted_by_kubernetes_is_followed_through_its_links(tmp_path: Path) -> None:
    keys = {}
    for version in ("first", "second"):
        (tmp_path / version).mkdir()
        keys[version] = new_key(tmp_path / version / "keys.yaml", version)
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    clock = Clock()
    ring = KeyRing.from_file(tmp_path / "keys.yaml", clock)
    assert ring.identify(keys["first"].encode()) == "first"
    (tmp_path / "next").symlink_to("second")
    (tmp_path / "next").replace(tmp_path / "..data")
    clock.now += 1.5
    assert [ring.identify(key.encode()) for key in keys.values()] == [None, "second"]


def test_json_will_do_as_well(file: Path) -> None:
    file.write_text(json.dumps({"keys": [{"id": "lis", "sha256": digest_key(b"right")}]}))
    assert KeyRing.from_file(file).identify(b"right") == "lis"


def test_what_is_wrong_with_a_file_is_said_without_what_stands_in_it(file: Path) -> None:
    file.write_text("keys: [{id: lis, sha256: the-key-itself}]")
    with pytest.raises(ConfigError, match=r"keys\.0\.sha256") as caught:
        KeyRing.from_file(file)
    assert "the-key-itself" not in str(caught.value)
    file.write_text("keys: []")
    with pytest.raises(ConfigError, match="no key in it"):
        KeyRing.from_file(file)
    file.write_text(f"keys: [{{id: a, sha256: {'ab' * 32}}}, {{id: a, sha256: {'cd' * 32}}}]")
    with pytest.raises(ConfigError, match="key id a stands there twice"):
        KeyRing.from_file(file)


def test_an_id_is_given_once_and_only_a_known_one_is_revoked(file: Path) -> None:
    new_key(file, "lis")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="there is a key lis already"):
        new_key(file, "lis")
    with pytest.raises(ConfigError, match="no key other; there are lis"):
        revoke_key(file, "other")
    with pytest.raises(ConfigError, match="id='Not A Name'"):
        new_key(file, "Not A Name")
    assert file.read_bytes() == before


def test_keys_made_at_once_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = dict(zip(range(16), pool.map(lambda number: new_key(file, f"k{number}"), range(16)), strict=True))
    assert len(read_keys(file)) == len(set(keys.values())) == 16


def test_the_environment_s_key_goes_on_working_and_a_file_comes_before_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTORAY_API_KEY", raising=False)
    assert open_keys(None) is None
    monkeypatch.setenv("HISTORAY_API_KEY", "right")
    ring = open_keys(None)
    assert ring is not None
    assert (ring.identify(b"right"), ring.identify(b"wrong")) == ("environment", None)
    new_key(file, "lis")
    ring = open_keys(str(file))
    assert ring is not None
    assert ring.identify(b"right") is None


def test_a_ring_travels_to_another_process(file: Path) -> None:
    key = new_key(file, "lis")
    assert pickle.loads(pickle.dumps(KeyRing.from_file(file))).identify(key.encode()) == "lis"


def test_a_revoked_key_is_locked_out_on_a_machine_that_started_later_too(file: Path) -> None:
    clock, keys = Clock(), {name: new_key(file, name) for name in ("old", "new")}
    clock.now = 1e6
    sent = pickle.dumps(KeyRing.from_file(file, clock))
    revoke_key(file, "old")
    ring = pickle.loads(sent)
    assert [ring.identify(key.encode()) for key in keys.values()] == [None, "new"]


def test_the_commands_print_a_key_once_list_ids_and_revoke(file: Path) -> None:
    def run(*arguments: str) -> str:
        program = "import sys; from historay.cli import main; sys.argv[0] = 'historay'; main()"
        command = [sys.executable, "-c", program, "keys", *arguments, "--file", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    key = run("new", "lis")
    assert KeyRing.from_file(file).identify(key.encode()) == "lis"
    assert "lis" in run("list")
    run("revoke", "lis")
    assert read_keys(file) == ()


@given(gaps=st.lists(st.floats(0, 3), min_size=1, max_size=200), rate=st.floats(0.1, 50), burst=st.integers(1, 20))
def test_no_key_ever_gets_more_than_its_rate_and_its_burst(gaps: list[float], rate: float, burst: int) -> None:
    clock = Clock()
    limit, allowed = RateLimit(rate, burst, clock), 0
    for gap in gaps:
        clock.now += gap
        allowed += limit.wait_s("a") == 0
        assert allowed <= burst + rate * clock.now + 1e-6


@given(rate=st.floats(0.1, 50), burst=st.integers(1, 20))
def test_who_waits_as_long_as_told_is_let_in_and_another_key_never_waits_for_it(rate: float, burst: int) -> None:
    clock = Clock()
    limit = RateLimit(rate, burst, clock)
    assert [limit.wait_s("a") for _ in range(burst)] == [0.0] * burst
    wait_s = limit.wait_s("a")
    assert 0 < wait_s <= 1 / rate
    assert limit.wait_s("b") == 0
    clock.now += wait_s + 1e-6
    assert limit.wait_s("a") == 0
