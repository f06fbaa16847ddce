"""A replica follows its alias for as long as it lives, whatever fails on the way."""

import time
from collections import Counter

import pytest
import torch
from bundles import PROBES, SPEC
from processes import wait_until

from historay.errors import BundleError
from historay.models.bundle import load_bundle, make_probes, save_bundle
from historay.models.registry import PRODUCTION, set_alias
from historay.models.zoo import build_model
from historay.serving import replica
from historay.serving.limits import RequestConfig
from historay.serving.metrics import Metrics
from historay.serving.replica import Replica
from historay.storage import LocalStore


def save(store: LocalStore, seed: int) -> str:
    torch.manual_seed(seed)
    model = build_model("small_cnn", 2, 48).eval()
    return save_bundle(store, SPEC, model, {}, make_probes(model, PROBES.tiles_BHWC, SPEC.preprocessing))


def answering(found: Replica) -> str | None:
    service = found.current()
    return service.predictor.bundle.version if service else None


def test_what_fails_in_passing_is_tried_again_and_a_refused_version_only_when_the_alias_moves(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [save(store, seed) for seed in (1, 2, 3)]
    set_alias(store, "demo", PRODUCTION, versions[0], "a test")
    following = Replica(store.uri, "demo", RequestConfig(runtime="torch"), 1, Metrics())
    following.load("demo", versions[0])
    tries = Counter[str]()
    mishaps = [OSError("the bucket is away"), RuntimeError("out of memory"), MemoryError()]

    def load(store: LocalStore, name: str, version: str) -> object:
        tries[version] += 1
        if version == versions[1] and mishaps:
            raise mishaps.pop(0)
        if version == versions[2]:
            raise BundleError("damaged")
        return load_bundle(store, name, version)

    monkeypatch.setattr(replica, "load_bundle", load)
    following.follow(0.01)
    set_alias(store, "demo", PRODUCTION, versions[1], "a test")
    wait_until(lambda: answering(following) == versions[1], 600, "the move")
    set_alias(store, "demo", PRODUCTION, versions[2], "a test")
    wait_until(lambda: tries[versions[2]] == 1, 600, "the refusal")
    time.sleep(0.2)  # many looks
    set_alias(store, "demo", PRODUCTION, versions[0], "a test")
    wait_until(lambda: answering(following) == versions[0], 600, "the move back")
    assert tries == {versions[0]: 1, versions[1]: 4, versions[2]: 1}
