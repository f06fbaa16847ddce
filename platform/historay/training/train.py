"""Training with Ray Train: the driver writes down what is trained and starts the workers, which only connect and report.

Checkpoints go through our own store rather than Ray Train's: one way for a folder and a bucket, with retries, whole or not
at all, and found again by a new driver and by a replaced worker in the same way. Ray keeps the workers, not the weights.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from numpy import concatenate
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue

from historay.data.dataset import Dataset, open_dataset
from historay.data.loading import Labels, Tiles, iter_tiles, one_ahead, shuffled_batches
from historay.data.streaming import load_all, stream_split, streamed_batches
from historay.data.transforms import Preprocessing
from historay.errors import ConfigError, DataError, HistorayError, NotFound, TrainingError
from historay.log import log_event, setup_logging
from historay.models.zoo import build_model
from historay.ray_session import connect_ray
from historay.storage import Store, open_store
from historay.training.metrics_log import follow
from historay.training.run import RunRecord, read_metrics, read_run, run_key
from historay.training.settings import TrainConfig
from historay.training.worker import Place, build_learner, epoch_seed, run_epochs, threads_per_worker

_STATISTICS_TILES = 2048
_START_TIMEOUT_S = "600"  # Ray Train gives workers 60 s by default; an autoscaled node needs minutes


def train(config: TrainConfig) -> str:
    """Trains a run to its end, or goes on with it, and returns its name; a finished one is left as it is.

    Raises LeakError on an unaccepted leak, and ConfigError if the run exists with other settings.
    """
    store = open_store(config.store)
    dataset = open_dataset(store, config.dataset)
    dataset.refuse_leaks(config.accept_leaks)
    record = _open_run(store, dataset, config)
    if record.status == "finished":
        log_event("train: already finished", run=config.run, steps=record.num_steps)
        return config.run
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_TIMEOUT_S)
    connect_ray()
    _refuse_unplaceable(config)
    _fit(store, dataset, config, record)
    num_steps = read_metrics(store, config.run)[-1]["step"]
    finished = record.model_copy(update={"status": "finished", "num_steps": num_steps})
    store.write(run_key(config.run, "run.json"), finished.model_dump_json(indent=2).encode())
    best = max(
        read_metrics(store, config.run), key=lambda line: line[config.monitor] * (-1 if config.monitor == "val_loss" else 1)
    )
    log_event("train done", run=config.run, steps=num_steps, best_epoch=best["epoch"], **{config.monitor: best[config.monitor]})
    return config.run


def _open_run(store: Store, dataset: Dataset, config: TrainConfig) -> RunRecord:
    """Writes run.json with a new attempt, so that an earlier driver of the run stops; refuses other settings."""
    try:
        existing: RunRecord | None = read_run(store, config.run)
    except NotFound:
        existing = None
    record = _new_record(dataset, config, existing)
    if existing is None or existing.status != "finished":
        store.write(run_key(config.run, "run.json"), record.model_dump_json(indent=2).encode())
    return record


def _new_record(dataset: Dataset, config: TrainConfig, existing: RunRecord | None) -> RunRecord:
    # Where it runs may change between attempts; what is trained may not.
    settings = config.model_dump(mode="json", exclude={"store", "max_failures", "logger", "cache_gib", "cpus_per_worker"})
    settings["dataset"] = dataset.reference
    if existing is not None:
        if differing := sorted(name for name in settings if existing.config.get(name) != settings[name]):
            changes = ", ".join(f"{name} was {existing.config.get(name)!r}, now {settings[name]!r}" for name in differing)
            raise ConfigError(
                f"run {config.run} exists with other settings: {changes}. Choose another --run, or the old settings"
            )
        return existing if existing.status == "finished" else existing.model_copy(update={"attempt": uuid.uuid4().hex})
    preprocessing = _preprocessing(dataset, config)
    record = dataset.record
    build_model(config.model, len(record.classes), preprocessing.input_px, config.dropout)  # refuses what cannot be built
    per_worker = record.num_tiles["train"] // config.num_workers
    steps = per_worker // (config.batch_size // config.num_workers)
    if steps == 0:
        raise ConfigError(
            f"batch_size={config.batch_size} is more than the {record.num_tiles['train']} training tiles; lower it"
        )
    return RunRecord(
        run=config.run,
        attempt=uuid.uuid4().hex,
        status="running",
        config=settings,
        dataset=dataset.reference,
        dataset_digest=record.digest,
        accepted_leaks=tuple(leak.kind for leak in record.leaks),
        classes=record.classes,
        architecture=config.model,
        dropout=config.dropout,
        preprocessing=preprocessing,
        mpp=record.mpp,
        seed=config.seed,
        world_size=config.num_workers,
        steps_per_epoch=steps,
        num_steps=None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in ("historay", "ray", "torch", "torchvision")},
    )


def _preprocessing(dataset: Dataset, config: TrainConfig) -> Preprocessing:
    """Measures each channel's mean and deviation on the first training tiles, which are in random order."""
    size = dataset.record.tile_px
    input_px = config.input_px or (size[0] if size and size[0] == size[1] else None)
    if input_px is None:
        raise ConfigError(f"{dataset.reference}: its tiles are {size or 'of mixed sizes'}, not one square; set --input-px")
    tiles: list[Tiles] = []
    for batch in iter_tiles(dataset, "train", input_px, batch_size=256):
        tiles.append(batch.tiles_BHWC)
        if sum(map(len, tiles)) >= _STATISTICS_TILES:
            break
    unit = concatenate(tiles).astype("float32") / 255.0
    mean, std = unit.mean(axis=(0, 1, 2)).tolist(), unit.std(axis=(0, 1, 2)).tolist()
    if min(std) == 0:
        raise DataError(f"{dataset.reference}: a colour channel is the same in all training tiles; there is nothing to learn")
    return Preprocessing(input_px=input_px, mean=tuple(mean), std=tuple(std))


def _refuse_unplaceable(config: TrainConfig) -> None:
    """Says at once what would wait for ever; on a cluster that may grow it is only a warning."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = {"CPU": config.num_workers * config.cpus_per_worker}
    if config.use_gpu:
        wanted["GPU"] = config.num_workers
    for kind, amount in wanted.items():
        if amount > there.get(kind, 0):
            text = f"{config.num_workers} workers need {amount} {kind}, and the cluster has {there.get(kind, 0):g}"
            if not os.environ.get("RAY_ADDRESS"):
                raise ConfigError(f"{text}; lower --num-workers" + (" or drop --use-gpu" if kind == "GPU" else ""))
            log_event("WARNING waiting for nodes", needs=text)


def _fit(store: Store, dataset: Dataset, config: TrainConfig, record: RunRecord) -> None:
    filesystem, root = store.arrow()
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = ray.train.torch.TorchTrainer(
        _work,
        # The store's own address: a worker stands in another folder, where a relative one leads nowhere.
        train_loop_config={
            "config": {**config.model_dump(), "store": store.uri},
            "record": record.model_dump(),
            "queue": queue,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=record.attempt,
            storage_path=f"{root}/{run_key(config.run, 'ray')}",
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
        ),
        datasets={"train": stream_split(dataset, "train")},
        dataset_config=ray.train.DataConfig(execution_options=_in_order()),
    )
    done = threading.Event()
    follower = threading.Thread(target=follow, args=(queue, done, config, record, store), daemon=True)
    follower.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _own_error(error) from None
    finally:
        done.set()
        follower.join(timeout=30)
        queue.shutdown()


def _in_order() -> "ray.data.ExecutionOptions":
    """The same tiles go to the same worker in each attempt."""
    return ray.data.ExecutionOptions(preserve_order=True)


def _own_error(error: TrainingFailedError) -> HistorayError:
    """Finds our own error among what the workers died of."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, HistorayError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return TrainingError(
        f"the workers failed more often than --max-failures allows; the last checkpoint is kept. {failures[0]}"
    )


def _work(settings: dict[str, Any]) -> None:
    """What each worker does."""
    setup_logging()
    config, record = TrainConfig(**settings["config"]), RunRecord(**settings["record"])
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    place = Place(rank, context.get_world_size(), device)
    threads = threads_per_worker(context.get_local_world_size())
    torch.set_num_threads(threads)
    dataset = open_dataset(open_store(config.store), record.dataset)
    learner = build_learner(config, record, device, lambda model: ray.train.torch.prepare_model(model, move_to_device=False))
    shard = ray.train.get_dataset_shard("train")
    per_worker = config.batch_size // place.world_size
    tiles = None
    if _share_in_gib(dataset, record, place) <= config.cache_gib:
        num_tiles = dataset.record.num_tiles["train"] // place.world_size
        tiles = load_all(shard, num_tiles, record.preprocessing.input_px, threads)

    def batches(epoch: int) -> Iterator[tuple[Tiles, Labels]]:
        seed, steps = epoch_seed(config.seed, epoch, rank), record.steps_per_epoch
        if tiles is not None:
            found = shuffled_batches(tiles, per_worker, seed)
        else:
            found = streamed_batches(shard, record.preprocessing.input_px, per_worker, seed, threads)
        for number, batch in enumerate(one_ahead(found), start=1):
            yield batch
            if rank == 0:
                settings["queue"].put_nowait({"epoch": epoch, "step": number, "of": steps})

    for found in run_epochs(config, record, dataset, place, learner, batches):
        if rank == 0:
            settings["queue"].put_nowait({"metrics": found})
        ray.train.report(found)


def _share_in_gib(dataset: Dataset, record: RunRecord, place: Place) -> float:
    num_bytes = dataset.record.num_tiles["train"] * record.preprocessing.input_px**2 * 3
    return num_bytes / place.world_size / 2**30
