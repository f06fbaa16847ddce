"""Training with Ray Train: the driver writes down what is trained and starts the workers, which only connect and report.

Checkpoints go through our own store rather than Ray Train's: one way for a folder and a bucket, with retries, whole or not
at all, and found again by a new driver and by a replaced worker in the same way. Ray keeps the workers, not the weights.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from numpy import concatenate
from ray.train import UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from historay.data.dataset import Dataset, open_dataset
from historay.data.loading import Labels, Tiles, iter_tiles, one_ahead, shuffled_batches
from historay.data.share import batch_parts, load_share, make_room, share_of, streamed_batches
from historay.data.transforms import Preprocessing, measure_preprocessing
from historay.errors import ConfigError, DataError, HistorayError, NotFound, StorageError, TrainingError
from historay.log import log_event, setup_logging
from historay.models.zoo import build_model
from historay.ray_session import connect_ray
from historay.storage import PatientStore, Store, open_store
from historay.training.metrics_log import follow
from historay.training.parallel import DDP_SETTINGS
from historay.training.run import RunRecord, read_metrics, read_run, run_key
from historay.training.settings import MAY_CHANGE, TrainConfig
from historay.training.worker import Place, build_learner, epoch_seed, run_epochs, threads_per_worker

_STATISTICS_TILES = 2048
_TELL_EVERY_S = 1.0
# Ray Train gives workers 60 s; an autoscaled node needs minutes. With min_workers it may have asked for a node that has just
# gone, and only looks again after this time.
_START_TIMEOUT_S, _ELASTIC_START_TIMEOUT_S = "600", "60"


def train(config: TrainConfig, callbacks: Sequence[UserCallback] = ()) -> str:
    """Trains a run to its end, or goes on with it, and returns its name; a finished one is left as it is.

    ``callbacks`` are Ray Train's, told of each epoch's metrics; a search reports to Ray Tune by one.
    Raises LeakError on an unaccepted leak, and ConfigError if the run exists with other settings.
    """
    store = PatientStore(open_store(config.store))
    dataset = open_dataset(store, config.dataset)
    dataset.refuse_leaks(config.accept_leaks)
    record = _open_run(store, dataset, config)
    if record.status == "finished":
        log_event("train: already finished", run=config.run, steps=record.num_steps)
        return config.run
    _set_time_limits(config)
    connect_ray()
    _refuse_unplaceable(config)
    _fit(store, config, record, callbacks)
    num_steps = read_metrics(store, config.run)[-1]["step"]
    finished = record.model_copy(update={"status": "finished", "num_steps": num_steps})
    store.write(run_key(config.run, "run.json"), finished.model_dump_json(indent=2).encode())
    best = max(
        read_metrics(store, config.run), key=lambda line: line[config.monitor] * (-1 if config.monitor == "val_loss" else 1)
    )
    log_event("train done", run=config.run, steps=num_steps, best_epoch=best["epoch"], **{config.monitor: best[config.monitor]})
    return config.run


def _set_time_limits(config: TrainConfig) -> None:
    """Tells Ray Train how long to wait: for workers to start, for one that does not answer, and for one missing at a report."""
    start = _START_TIMEOUT_S if config.min_workers is None else _ELASTIC_START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", start)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(config.hang_timeout_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(config.hang_timeout_s)


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
    settings = config.model_dump(mode="json", exclude=MAY_CHANGE)
    settings["dataset"] = dataset.reference
    if existing is not None:
        # A setting that is younger than the run had what is now its default.
        before = {name: existing.config.get(name, TrainConfig.model_fields[name].default) for name in settings}
        if differing := sorted(name for name in settings if before[name] != settings[name]):
            changes = ", ".join(f"{name} was {before[name]!r}, now {settings[name]!r}" for name in differing)
            raise ConfigError(
                f"run {config.run} exists with other settings: {changes}. Choose another --run, or the old settings"
            )
        if existing.status == "finished":
            return existing
        return existing.model_copy(update={"attempt": uuid.uuid4().hex, "logger": config.logger})
    preprocessing = _preprocessing(dataset, config)
    record = dataset.record
    build_model(config.model, len(record.classes), preprocessing.input_px, config.dropout)  # refuses what cannot be built
    steps = record.num_tiles["train"] // config.batch_size
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
        logger=config.logger,
    )


def _preprocessing(dataset: Dataset, config: TrainConfig) -> Preprocessing:
    """Measures the stain, and each channel's mean and deviation, on the first training tiles, which are in random order."""
    size = dataset.record.tile_px
    input_px = config.input_px or (size[0] if size and size[0] == size[1] else None)
    if input_px is None:
        raise ConfigError(f"{dataset.reference}: its tiles are {size or 'of mixed sizes'}, not one square; set --input-px")
    tiles: list[Tiles] = []
    for batch in iter_tiles(dataset, "train", input_px, batch_size=256):
        tiles.append(batch.tiles_BHWC)
        if sum(map(len, tiles)) >= _STATISTICS_TILES:
            break
    try:
        return measure_preprocessing(concatenate(tiles), config.stain_normalisation)
    except DataError as error:
        raise DataError(f"{dataset.reference}: {error}") from None


def _refuse_unplaceable(config: TrainConfig) -> None:
    """Says at once what would wait for ever; on a cluster that may grow it is only a warning."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    least = config.min_workers or config.num_workers
    wanted = {"CPU": least * config.cpus_per_worker}
    if config.use_gpu:
        wanted["GPU"] = least
    for kind, amount in wanted.items():
        if amount > there.get(kind, 0):
            text = f"{least} workers need {amount} {kind}, and the cluster has {there.get(kind, 0):g}"
            if not os.environ.get("RAY_ADDRESS"):
                raise ConfigError(f"{text}; lower --num-workers" + (" or drop --use-gpu" if kind == "GPU" else ""))
            log_event("WARNING waiting for nodes", needs=text)


def _fit(store: Store, config: TrainConfig, record: RunRecord, callbacks: Sequence[UserCallback]) -> None:
    filesystem, root = store.arrow()
    num_workers: Any = config.num_workers if config.min_workers is None else (config.min_workers, config.num_workers)
    # On the driver's node, like Ray Train's controller: it must not be lost with a worker's node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = ray.train.torch.TorchTrainer(
        _work,
        # The store's own address: a worker stands in another folder, where a relative one leads nowhere.
        train_loop_config={
            "config": {**config.model_dump(), "store": store.uri},
            "record": record.model_dump(),
            "queue": queue,
        },
        torch_config=ray.train.torch.TorchConfig(timeout_s=config.hang_timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=record.attempt,
            storage_path=f"{root}/{run_key(config.run, 'ray')}",
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            callbacks=list[Any]([_EndOnOwnError(), *callbacks]),
        ),
    )
    done = threading.Event()
    follower = threading.Thread(target=follow, args=(queue, done, config, record, store), daemon=True)
    follower.start()
    try:
        with _own_ctrl_c():
            trainer.fit()
        queue.put({"finished": True})
    except TrainingFailedError as error:
        raise _own_error(error) from None
    finally:
        done.set()
        follower.join(timeout=30)
        queue.shutdown()


class _EndOnOwnError(UserCallback):
    """Ends the run at once on an error that would only come again, such as a gradient that is not finite.

    What a callback raises is not counted among the failures that Ray Train answers with new workers. An error of the store is.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        for error in _own_errors(worker_exceptions.values()):
            if not isinstance(error, StorageError):
                raise error


@contextmanager
def _own_ctrl_c() -> Iterator[None]:
    """Gives Ctrl-C back afterwards: the handler that Ray Train sets and leaves would also keep its controller's actor alive."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def own_cause(error: BaseException | None) -> HistorayError | None:
    """Finds our own error in a chain of causes, Ray's among them."""
    while error is not None and not isinstance(error, HistorayError):
        error = getattr(error, "cause", None) or error.__cause__
    return error


def _own_error(error: TrainingFailedError) -> HistorayError:
    """Finds our own error among what the workers, or Ray Train's controller, died of."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    own = _own_errors(failures)
    return (
        own[0]
        if own
        else TrainingError(
            f"the workers failed more often than --max-failures allows; the last checkpoint is kept. {failures[0]}"
        )
    )


def _own_errors(failures: Iterable[Exception]) -> list[HistorayError]:
    return [cause for cause in map(own_cause, failures) if cause is not None]


def _work(settings: dict[str, Any]) -> None:
    """What each worker does."""
    setup_logging()
    config, record = TrainConfig(**settings["config"]), RunRecord(**settings["record"])
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    place = Place(rank, context.get_world_size(), device)
    threads = threads_per_worker(context.get_local_world_size())
    torch.set_num_threads(threads)
    dataset = open_dataset(PatientStore(open_store(config.store)), record.dataset)
    # One size of batch in a run: cuDNN measures once which of its algorithms is the fastest.
    torch.backends.cudnn.benchmark = True
    share = partial(ray.train.torch.prepare_model, move_to_device=False, parallel_strategy_kwargs=DDP_SETTINGS)
    learner = build_learner(config, record, device, share)
    parts = batch_parts(config.batch_size, place.world_size)
    pieces = share_of(dataset, "train", rank, parts)
    num_tiles, input_px = sum(piece.stop - piece.start for piece in pieces), record.preprocessing.input_px
    room = make_room(num_tiles, input_px, config.cache_gib)
    tiles = None if room is None else load_share(dataset, pieces, room, threads)

    def batches(epoch: int) -> Iterator[tuple[Tiles, Labels]]:
        seed, steps = epoch_seed(config.seed, epoch, rank), record.steps_per_epoch
        if tiles is not None:
            found = shuffled_batches(tiles, parts[rank], seed)
        else:
            found = streamed_batches(dataset, pieces, input_px, parts[rank], seed, threads)
        told = time.monotonic()
        for number, batch in enumerate(one_ahead(islice(found, steps)), start=1):
            yield batch
            # Each telling waits for an answer from another process, which at every step took a fifth of the time.
            if rank == 0 and time.monotonic() - told >= _TELL_EVERY_S:
                settings["queue"].put_nowait({"epoch": epoch, "step": number, "of": steps})
                told = time.monotonic()

    for found in run_epochs(config, record, dataset, place, learner, batches):
        if rank == 0:
            settings["queue"].put_nowait({"metrics": found})
        ray.train.report(found)
