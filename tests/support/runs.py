"""What must hold of a run that has ended, whatever happened on the way."""

from historay.data.dataset import Dataset
from historay.training.run import complete_epochs, load_run, read_metrics, read_run
from historay.training.settings import TrainConfig


def assert_complete(dataset: Dataset, config: TrainConfig) -> None:
    """Every epoch has its line and exactly its steps, and the last and the best checkpoint are whole."""
    record, lines = read_run(dataset.store, config.run), read_metrics(dataset.store, config.run)
    assert record.status == "finished"
    assert record.num_steps == config.epochs * record.steps_per_epoch
    assert record.steps_per_epoch == dataset.record.num_tiles["train"] // config.batch_size
    assert [line["epoch"] for line in lines] == list(range(1, config.epochs + 1))
    assert [line["step"] for line in lines] == [epoch * record.steps_per_epoch for epoch in range(1, config.epochs + 1)]
    assert complete_epochs(dataset.store, config.run)[-1] == config.epochs
    load_run(dataset.store, config.run, "last")
    load_run(dataset.store, config.run, "best")
