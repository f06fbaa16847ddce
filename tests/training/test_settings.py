"""Settings that contradict each other are refused, and a run goes on though settings were added since it began."""

import json

import pytest
from datasets import textures

from historay.errors import ConfigError
from historay.storage import LocalStore
from historay.training.run import read_run, run_key
from historay.training.settings import TrainConfig
from historay.training.train import _open_run


@pytest.mark.parametrize(("batch_size", "accumulate"), [(64, 3), (6, 2), (2, 2)])
def test_a_batch_that_cannot_be_split_evenly_is_refused(batch_size: int, accumulate: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}, num_workers=2 and accumulate={accumulate}"):
        TrainConfig(run="r", dataset="d", num_workers=2, batch_size=batch_size, accumulate=accumulate)


def test_a_run_from_before_a_setting_had_its_default(store: LocalStore) -> None:
    dataset = textures(store)
    config = TrainConfig(run="old", dataset=dataset.reference, store=store.uri, batch_size=4, num_workers=1)
    _open_run(store, dataset, config)
    record = json.loads(store.read(run_key("old", "run.json")))
    del record["config"]["accumulate"]
    store.write(run_key("old", "run.json"), json.dumps(record).encode())
    assert _open_run(store, dataset, config).attempt != record["attempt"]
    with pytest.raises(ConfigError, match="accumulate was 1, now 2"):
        _open_run(store, dataset, config.model_copy(update={"accumulate": 2}))
    assert read_run(store, "old").status == "running"
