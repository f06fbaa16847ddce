"""A small ingested data set on the session's real Ray cluster."""

from pathlib import Path

import pytest

from historay.data.dataset import Dataset
from historay.data.ingest import IngestConfig, ingest
from historay.data.synthetic import SyntheticConfig, write_synthetic
from historay.training.settings import TrainConfig


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_synthetic(SyntheticConfig(out=str(folder), num_tiles=800, num_patients=20, tile_px=64))
    return folder


@pytest.fixture(scope="session")
def dataset(ray_cluster: None, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    store = str(tmp_path_factory.mktemp("store"))
    return ingest(IngestConfig(name="small", source=str(tiles / "manifest.csv"), store=store))


@pytest.fixture
def settings(dataset: Dataset) -> TrainConfig:
    return TrainConfig(
        run="run", dataset=dataset.reference, store=dataset.store.uri, epochs=3, batch_size=64, lr=2e-3, warmup_epochs=0.5
    )
