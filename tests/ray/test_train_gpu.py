"""Training over NCCL, one worker on each GPU; skips without one."""

import pytest
import torch
from gpus import needs_gpu

from historay.data.dataset import Dataset
from historay.training.run import read_metrics, read_run
from historay.training.settings import TrainConfig
from historay.training.train import train

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default"), *needs_gpu]


@pytest.mark.parametrize("num_workers", sorted({1, torch.cuda.device_count()} - {0}) or [1])
def test_workers_on_gpus_train_a_model_that_learns(dataset: Dataset, settings: TrainConfig, num_workers: int) -> None:
    changes = {"run": f"gpu-{num_workers}", "use_gpu": True, "num_workers": num_workers, "ema_decay": 0.9}
    changes |= {"batch_size": 32 * num_workers, "accumulate": 2, "epochs": 6}
    config = TrainConfig.model_validate({**settings.model_dump(), **changes})
    train(config)
    record, lines = read_run(dataset.store, config.run), read_metrics(dataset.store, config.run)
    assert record.num_steps == 6 * record.steps_per_epoch
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
