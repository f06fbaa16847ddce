"""What a search does around its trials, as far as no cluster is needed."""

import time
from typing import Any

import pytest

from historay.storage import LocalStore
from historay.training.search import run_trials
from historay.training.search_settings import SearchConfig, parse_space
from historay.training.settings import TrainConfig
from historay.training.study import Search, SearchRecord, TrialRecord, base_settings, write_trial

BASE = TrainConfig(run="s", dataset="d@1", num_workers=1, epochs=3)


@pytest.fixture
def opened(store: LocalStore) -> Search:
    return open_with(store)


def open_with(store: LocalStore, **changes: Any) -> Search:
    config = SearchConfig(search="s", train="train.yaml", space={"lr": [1e-3, 1e-2]}, max_trials=2, **changes)
    record = SearchRecord(
        search="s", space=config.space, base=base_settings(BASE, "d@1"), monitor="val_auc", seed=0, attempt="a", created="now"
    )
    return Search(config, BASE, parse_space(config.space), store, record, time.monotonic() + 3600)


def trial(number: int, status: str = "complete", **changes: Any) -> TrialRecord:
    values = {"number": number, "run": f"s-{number}", "params": {"lr": 1e-3}, "status": status, "curve": (0.5,)}
    return TrialRecord.model_validate({**values, "started": "now", **changes})


def test_what_a_driver_left_that_was_killed_after_its_last_trial_is_removed_by_the_next(opened: Search) -> None:
    trials = [trial(0), trial(1, "stopped")]
    for one in trials:
        write_trial(opened.store, "s", one)
    for key in ("searches/s/tune/a/state", "runs/s-0/checkpoints/epoch-0001/state.json"):
        opened.store.write(key, b"")
    opened.store.write("runs/s-1/checkpoints/epoch-0002/model.safetensors", b"half a checkpoint")
    opened.store.write("runs/s-1-seed1/checkpoints/epoch-0001/state.json", b"a finalist's")
    assert run_trials(opened) == trials
    left = {item.key for item in opened.store.list()}
    kept = {"searches/s/trials/s-0.json", "searches/s/trials/s-1.json"}
    assert left == kept | {"runs/s-1-seed1/checkpoints/epoch-0001/state.json"}
