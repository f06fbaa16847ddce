"""What the driver shows and passes on while the workers train: a progress bar or log lines, TensorBoard or MLflow."""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from historay.errors import StorageError
from historay.log import log_event
from historay.storage import Store
from historay.training.mlflow_mirror import Mirror, Status, numbers
from historay.training.run import RunRecord, run_key
from historay.training.settings import TrainConfig

_LOG_EVERY_S = 10.0
_SHOWN = ("train_loss", "val_loss", "val_auc", "val_accuracy", "lr", "tiles_per_s", "epoch_seconds")
Event = dict[str, Any]


class Sink(Protocol):
    """Where the figures go besides the log."""

    def write(self, found: Event, /) -> None:
        """Takes an epoch's figures."""

    def close(self, status: Status, /) -> None:
        """Hears how the run ended."""


class Events(Protocol):
    """What ``follow`` needs of a queue."""

    def empty(self) -> bool:
        """Tells whether nothing waits."""

    def get(self) -> Event:
        """Takes the next event."""


def follow(events: Events, done: threading.Event, config: TrainConfig, record: RunRecord, store: Store) -> None:
    """Shows the workers' events until ``done`` is set and none is left; runs beside the driver.

    A run of which no event says that it finished has failed.
    """
    status: Status = "FAILED"
    sink = _open_sink(config, record, store)
    show = _Bar(config, record) if Console(stderr=True).is_terminal else _Lines(config)
    try:
        while not (done.is_set() and events.empty()):
            if events.empty():
                time.sleep(0.2)
                continue
            event = events.get()
            show.show(event)
            if "metrics" in event:
                found = event["metrics"]
                log_event("epoch", n=f"{found['epoch']}/{config.epochs}", **{name: found[name] for name in _SHOWN})
                sink.write(found)
            elif "finished" in event:
                status = "FINISHED"
    finally:
        show.close()
        sink.close(status)


class _Bar:
    """One bar for the whole run, on a terminal."""

    def __init__(self, config: TrainConfig, record: RunRecord) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]:.0f} img/s"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.task = self.progress.add_task("training", total=config.epochs * record.steps_per_epoch, speed=0.0)
        self.batch_size = config.batch_size
        self.progress.start()

    def show(self, event: Event) -> None:
        if "step" in event:
            speed = (self.progress.tasks[0].speed or 0.0) * self.batch_size
            completed = (event["epoch"] - 1) * event["of"] + event["step"]
            self.progress.update(self.task, completed=completed, description=f"epoch {event['epoch']}", speed=speed)

    def close(self) -> None:
        self.progress.stop()


class _Lines:
    """A line every ten seconds, in a pod or a file."""

    def __init__(self, config: TrainConfig) -> None:
        self.batch_size, self.epochs = config.batch_size, config.epochs
        self.last: tuple[float, int] | None = None

    def show(self, event: Event) -> None:
        if "step" not in event:
            return
        now, steps = time.monotonic(), (event["epoch"] - 1) * event["of"] + event["step"]
        if self.last is None:
            self.last = (now, steps)
        elif now - self.last[0] >= _LOG_EVERY_S:
            rate = (steps - self.last[1]) / (now - self.last[0])
            left = (self.epochs * event["of"] - steps) / max(rate, 1e-9)
            step = f"{event['step']}/{event['of']}"
            log_event("training", epoch=event["epoch"], step=step, tiles_per_s=rate * self.batch_size, left_s=round(left))
            self.last = (now, steps)

    def close(self) -> None:
        self.last = None


def _open_sink(config: TrainConfig, record: RunRecord, store: Store) -> Sink:
    match config.logger:
        case "tensorboard":
            return _TensorBoard(record.run, store)
        case "mlflow":
            return Mirror(record)
        case "none":
            return _Nowhere()


class _Nowhere:
    def write(self, _: Event) -> None:
        """Drops it."""

    def close(self, _: Status) -> None:
        """Nothing is open."""


class _TensorBoard:
    """Writes event files to a temporary folder and copies them into the store after each epoch: a bucket cannot append."""

    def __init__(self, run: str, store: Store) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.store = run, store
        self.folder = tempfile.TemporaryDirectory(prefix="historay-tensorboard-")
        self.writer = SummaryWriter(self.folder.name)

    def write(self, found: Event) -> None:
        for name, value in numbers(found).items():
            self.writer.add_scalar(name, value, found["epoch"])
        self.writer.flush()
        try:
            for file in Path(self.folder.name).iterdir():
                self.store.write(run_key(self.run, f"tensorboard/{file.name}"), file.read_bytes())
        except StorageError as error:  # the next epoch's copy holds this one too
            log_event("WARNING tensorboard not written", error=error)

    def close(self, _: Status) -> None:
        self.writer.close()
        self.folder.cleanup()
