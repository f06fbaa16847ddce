"""Aliases move one step at a time, remember every move, and go back."""

import itertools
import threading

import pytest
from bundles import PROBES, SPEC, network

from historay.errors import BundleError, ConfigError, Conflict
from historay.models.bundle import save_bundle
from historay.models.registry import Terms, describe_model, list_models, resolve, rollback, set_alias
from historay.storage import LocalStore


@pytest.fixture
def versions(store: LocalStore) -> list[str]:
    return [save_bundle(store, SPEC.model_copy(update={"seed": seed}), network(), {}, PROBES) for seed in range(3)]


def test_a_name_means_production_and_before_that_candidate(store: LocalStore, versions: list[str]) -> None:
    set_alias(store, "demo", "candidate", versions[0], "first")
    assert resolve(store, "demo") == ("demo", versions[0])
    set_alias(store, "demo", "production", versions[1], "better")
    assert resolve(store, "demo") == ("demo", versions[1])
    assert resolve(store, "demo@candidate") == ("demo", versions[0])
    assert resolve(store, f"demo@{versions[2]}") == ("demo", versions[2])


def test_what_does_not_exist_is_refused_with_what_does(store: LocalStore, versions: list[str]) -> None:
    set_alias(store, "demo", "candidate", versions[0], "first")
    with pytest.raises(BundleError, match="no model 'demos'; there is demo"):
        resolve(store, "demos")
    with pytest.raises(BundleError, match=f"has no staging; it has candidate, .*{versions[0]}"):
        resolve(store, "demo@staging")
    with pytest.raises(BundleError, match="no model demo@ffff"):
        set_alias(store, "demo", "production", "ffff", "wrong")
    with pytest.raises(ConfigError, match="names consist of"):
        set_alias(store, "demo", "../production", versions[0], "wrong")


def test_rolling_back_names_the_version_before_and_keeps_the_history(store: LocalStore, versions: list[str]) -> None:
    for version in versions[:2]:
        set_alias(store, "demo", "production", version, "promoted")
    moved = rollback(store, "demo", "production", "it was worse")
    assert moved.version == versions[0]
    assert [move.version for move in moved.history] == [versions[0], versions[1], versions[0]]
    assert moved.history[-1].reason == "it was worse"


def test_rolling_back_again_goes_further_back_and_not_to_what_was_just_left(store: LocalStore, versions: list[str]) -> None:
    for version in versions:
        set_alias(store, "demo", "production", version, "promoted")
    assert rollback(store, "demo", "production", "broken").version == versions[1]
    assert rollback(store, "demo", "production", "this one too").version == versions[0]
    with pytest.raises(BundleError, match="nothing to go back to"):
        rollback(store, "demo", "production", "and this")
    set_alias(store, "demo", "production", versions[2], "mended elsewhere")
    assert rollback(store, "demo", "production", "it was not").version == versions[0]
    told = store.read(f"models/demo/{versions[0]}/PROMOTIONS.md").decode()
    assert told.count("it was not") == told.count("this one too") == 1


def test_an_alias_that_was_moved_meanwhile_is_left_where_it_is(store: LocalStore, versions: list[str]) -> None:
    set_alias(store, "demo", "production", versions[0], "first", Terms(expected=None))
    with pytest.raises(Conflict, match=f"was moved to {versions[0]} since it was unset"):
        set_alias(store, "demo", "production", versions[1], "second", Terms(expected=None))
    assert resolve(store, "demo@production") == ("demo", versions[0])
    assert set_alias(store, "demo", "production", versions[1], "second", Terms(expected=versions[0])).version == versions[1]


def test_a_move_without_a_reason_is_refused(store: LocalStore, versions: list[str]) -> None:
    with pytest.raises(ConfigError, match="--reason is empty"):
        set_alias(store, "demo", "production", versions[0], " ")


def test_there_is_nothing_to_roll_back_to_after_one_promotion(store: LocalStore, versions: list[str]) -> None:
    set_alias(store, "demo", "production", versions[0], "promoted")
    with pytest.raises(BundleError, match="nothing to go back to"):
        rollback(store, "demo", "production", "why not")


def test_of_many_promotions_at_once_none_is_lost(store: LocalStore, versions: list[str]) -> None:
    threads = [
        threading.Thread(target=set_alias, args=(store, "demo", "production", versions[number % 3], f"number {number}"))
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (history,) = [moves for alias, moves in describe_model(store, "demo")["aliases"].items() if alias == "production"]
    assert {move["reason"] for move in history} == {f"number {number}" for number in range(12)}
    assert all(after["previous"] == before["version"] for before, after in itertools.pairwise(history))


def test_the_list_shows_versions_and_aliases(store: LocalStore, versions: list[str]) -> None:
    set_alias(store, "demo", "candidate", versions[1], "evaluated")
    known = list_models(store)["demo"]
    assert set(known.versions) == set(versions)
    assert known.aliases == {"candidate": versions[1]}
