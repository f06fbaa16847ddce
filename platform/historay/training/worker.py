"""One worker of a training run: its share of the tiles, its steps, validation and checkpoints; Ray only calls it."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from historay.cpus import available_cpus
from historay.data.dataset import Dataset
from historay.data.loading import Labels, Tiles, iter_tiles
from historay.data.share import batch_parts
from historay.errors import DataError, TrainingError
from historay.evaluation import metrics
from historay.models.inference import probabilities
from historay.models.zoo import build_model
from historay.storage import Store
from historay.training.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from historay.training.loop import Learner, Recipe, judged_model, predict, train_one_epoch
from historay.training.optim import build_ema, build_optimizer, build_schedule
from historay.training.parallel import exchange_in_bf16
from historay.training.run import Best, RunRecord, complete_epochs, read_metrics, read_run, run_key
from historay.training.settings import TrainConfig

_BATCH = 256  # of validation tiles
Metrics = dict[str, Any]
EpochBatches = Callable[[int], Iterator[tuple[Tiles, Labels]]]


class Place(NamedTuple):
    """Where a worker stands among the others."""

    rank: int
    world_size: int  # fewer than the run's while nodes are lost
    device: torch.device


class Standing(NamedTuple):
    """How far a run has come."""

    epoch: int  # finished epochs
    best: Best | None


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Returns one seed per epoch and worker, so that a resumed epoch draws what it would have drawn."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


def build_learner(
    config: TrainConfig, record: RunRecord, device: torch.device, wrap: Callable[[nn.Module], nn.Module]
) -> Learner:
    """Builds network, optimiser, schedule and average; ``wrap`` makes the network work with the other workers'."""
    torch.manual_seed(config.seed)
    model = build_model(record.architecture, len(record.classes), record.preprocessing.input_px, record.dropout)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = build_ema(model, config.ema_decay) if config.ema_decay is not None else None
    model = wrap(model)
    if config.bf16:
        exchange_in_bf16(model)
    optimizer = build_optimizer(model, config.optimizer, config.lr, config.momentum, config.weight_decay)
    steps = record.steps_per_epoch
    schedule = build_schedule(optimizer, config.schedule, round(config.warmup_epochs * steps), config.epochs * steps)
    return Learner(model, optimizer, schedule, ema)


def run_epochs(
    config: TrainConfig,
    record: RunRecord,
    dataset: Dataset,
    place: Place,
    learner: Learner,
    batches: EpochBatches,
) -> Iterator[Metrics]:
    """Trains from the last whole checkpoint to the end and yields the metrics of each epoch, on every worker alike."""
    store = dataset.store
    standing = _resume(store, record, learner)
    recipe = make_recipe(config, record, dataset, place)
    validation = _Validation(dataset, record, place)
    generator = torch.Generator()
    for epoch in range(standing.epoch + 1, config.epochs + 1):
        if _out_of_patience(config, standing, epoch - 1):
            return
        generator.manual_seed(epoch_seed(config.seed, epoch, place.rank))
        torch.manual_seed(epoch_seed(config.seed, epoch, place.rank))
        learner.epoch = epoch
        started = time.perf_counter()
        loss = train_one_epoch(learner, batches(epoch), recipe, generator)
        seconds = time.perf_counter() - started
        found = {
            "epoch": epoch,
            "step": learner.step,
            "train_loss": _mean_over_workers(loss, place),
            **validation.judge(judged_model(learner), bf16=config.bf16),
            "lr": learner.schedule.get_last_lr()[0],
            "epoch_seconds": round(seconds, 2),
            "tiles_per_s": round(record.steps_per_epoch * config.batch_size / seconds, 1),
            "workers": place.world_size,
        }
        standing = Standing(epoch, _better(config, standing.best, epoch, found))
        if place.rank == 0:
            _keep(store, record, standing, learner, found)
        yield found


def make_recipe(config: TrainConfig, record: RunRecord, dataset: Dataset, place: Place) -> Recipe:
    """Returns how a step turns tiles into a gradient; balanced weights have a mean of 1 over the training tiles."""
    weights = None
    if config.class_weights == "balanced":
        manifest = dataset.manifest(["label", "split"]).to_pandas()
        counts = np.bincount(manifest.loc[manifest["split"] == "train", "label"], minlength=len(record.classes))
        if (counts == 0).any():
            raise DataError(f"{record.dataset}: class {record.classes[int(counts.argmin())]} has no training tiles to balance")
        weights = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32, device=place.device)
    mine = batch_parts(config.batch_size, place.world_size)[place.rank] * place.world_size / config.batch_size
    return Recipe(
        record.preprocessing,
        config.augment,
        config.label_smoothing,
        weights,
        config.clip_norm,
        config.bf16,
        config.accumulate,
        mine,
    )


def validation_metrics(labels: Labels, logits: NDArray[np.float32]) -> Metrics:
    """Returns loss, AUC (of the second class, or the macro mean over classes), accuracy and balanced accuracy.

    What the split cannot tell, such as an AUC without tiles of one class, is null.
    """
    probability, one = probabilities(logits), np.ones(len(labels), dtype=np.int64)
    num_classes = probability.shape[1]
    if num_classes == 2:
        auc = metrics.roc_auc(labels == 1, probability[:, 1], one)
    else:
        auc = metrics.macro_roc_auc(labels, probability, one)
    confusion = metrics.confusion_matrix(labels, probability.argmax(axis=1), num_classes, one)
    loss = -np.log(np.maximum(probability[np.arange(len(labels)), labels], 1e-12)).mean()
    found = {
        "val_loss": float(loss),
        "val_auc": float(auc),
        "val_accuracy": float(metrics.accuracy(confusion)),
        "val_balanced_accuracy": float(metrics.balanced_accuracy(confusion)),
    }
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


class _Validation:
    """The validation split, shared out by shards and decoded once; every tile is judged exactly once."""

    def __init__(self, dataset: Dataset, record: RunRecord, place: Place) -> None:
        self.place, self.preprocessing = place, record.preprocessing
        parts = iter_tiles(dataset, "val", record.preprocessing.input_px, _BATCH, place.rank, place.world_size)
        decoded = [(batch.tiles_BHWC, batch.labels) for batch in parts]
        self.tiles, self.labels = [tiles for tiles, _ in decoded], [labels for _, labels in decoded]

    def judge(self, model: nn.Module, *, bf16: bool) -> Metrics:
        _same_buffers(model, self.place)
        mine = None
        if self.tiles:
            mine = (np.concatenate(self.labels), predict(model, self.tiles, self.preprocessing, bf16=bf16))
        everyone: list[tuple[Labels, NDArray[np.float32]] | None] = [mine]
        if self.place.world_size > 1:
            everyone = [None] * self.place.world_size
            dist.all_gather_object(everyone, mine)
        shares = [share for share in everyone if share is not None]
        return validation_metrics(np.concatenate([s[0] for s in shares]), np.concatenate([s[1] for s in shares]))


def _same_buffers(model: nn.Module, place: Place) -> None:
    """Gives every worker the first one's batch statistics, since that one's are saved."""
    if place.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _mean_over_workers(value: float, place: Place) -> float:
    if place.world_size == 1:
        return value
    total = torch.tensor([value], device=place.device)
    dist.all_reduce(total)
    return float(total) / place.world_size


def _resume(store: Store, record: RunRecord, learner: Learner) -> Standing:
    epochs = complete_epochs(store, record.run)
    if not epochs:
        return Standing(0, None)
    best = load_checkpoint(store, record.run, epochs[-1], learner)["best"]
    return Standing(epochs[-1], Best.model_validate(best) if best else None)


def _better(config: TrainConfig, best: Best | None, epoch: int, found: Metrics) -> Best | None:
    value = found[config.monitor]
    if value is None:
        raise TrainingError(
            f"monitor={config.monitor} cannot be told from the validation split, which lacks a class; use val_loss"
        )
    sign = -1 if config.monitor == "val_loss" else 1
    if best is None or sign * value > sign * best.value:
        return Best(epoch=epoch, monitor=config.monitor, value=value)
    return best


def _out_of_patience(config: TrainConfig, standing: Standing, epoch: int) -> bool:
    return config.patience is not None and standing.best is not None and epoch - standing.best.epoch >= config.patience


def _keep(store: Store, record: RunRecord, standing: Standing, learner: Learner, found: Metrics) -> None:
    """Writes the checkpoint, the metrics and the best epoch, and drops what is neither last nor best."""
    if read_run(store, record.run).attempt != record.attempt:
        raise TrainingError(f"another driver has taken over run {record.run}; this one stops, nothing is lost")
    best = standing.best
    save_checkpoint(store, record.run, standing.epoch, learner, {"best": best.model_dump() if best else None})
    lines = [line for line in read_metrics(store, record.run) if line["epoch"] < standing.epoch]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, found])
    store.write(run_key(record.run, "metrics.jsonl"), text.encode())
    if best is not None:
        store.write(run_key(record.run, "best.json"), best.model_dump_json().encode())
    drop_checkpoints(store, record.run, keep={standing.epoch, best.epoch if best else standing.epoch})


def threads_per_worker(workers_here: int) -> int:
    """Returns the share of this machine's, or pod's, CPUs that falls to each of its workers."""
    return max(1, available_cpus() // max(1, workers_here))
