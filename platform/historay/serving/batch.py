"""Predicts millions of images with Ray Data: each part of the input is one file of rows, and a part that is there stays.

A killed run leaves whole parts and the same command makes the others. A part that two attempts make at once is written
by both, whole, with the same rows under the same name.
"""

import itertools
import warnings
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from historay.data.dataset import open_dataset
from historay.data.decode import Limits
from historay.errors import ConfigError, ServingError, StorageError
from historay.log import log_event
from historay.models.bundle import Bundle, load_bundle
from historay.models.registry import resolve
from historay.models.runtime import RuntimeName, make_runtime
from historay.ray_session import connect_ray, run_pipeline
from historay.serving.inputs import find_images
from historay.serving.parts import (
    PARTS,
    Listing,
    Part,
    PartSummary,
    Plan,
    PredictionsRecord,
    claim,
    decode_part,
    encode_part,
    list_dataset_parts,
    list_image_parts,
    read_summaries,
    write_part,
    write_record,
)
from historay.serving.pipeline import PartPredictor
from historay.serving.predict_settings import PredictConfig
from historay.serving.predictor import Predictor
from historay.storage import Store, open_store

# An image on which a worker dies again and again must not be tried for ever.
_TRIES_AFTER_DEATH = 3


class Task(NamedTuple):
    """What every worker is told."""

    store: str  # URI that holds the model
    name: str
    version: str
    runtime: RuntimeName
    num_threads: int
    out: str  # URI
    plan: str  # digest


class PartWriter:
    """A Ray Data actor: holds the model, and turns a part into its file."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @cached_property
    def _bundle(self) -> Bundle:
        return load_bundle(open_store(self._task.store), self._task.name, self._task.version)

    # Made at the first part, not in __init__: what Ray says of an error there no longer is ours.
    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self._bundle, Limits(), make_runtime(self._bundle, self._task.runtime, self._task.num_threads))

    @cached_property
    def _parts(self) -> PartPredictor:
        return PartPredictor(self._predictor)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes one part, if nobody has meanwhile."""
        part, out = decode_part(row["part"]), open_store(self._task.out)
        if not out.exists(part.output):
            rows = self._parts.rows(part)
            num_errors = sum("error_reason" in found for found in rows)
            summary = PartSummary(
                plan=self._task.plan, runtime=self._predictor.runtime.name, num_rows=len(rows), num_errors=num_errors
            )
            write_part(out, part.output, rows, self._bundle.spec.classes, summary)
        return {"number": part.number}


def predict_in_batch(config: PredictConfig) -> int:
    """Writes one row per image under ``config.out`` and returns how many images could not be used.

    Raises ConfigError if another model or input stands there already.
    """
    assert config.out is not None, "predict() asks"
    out, store = open_store(config.out), open_store(config.store)
    bundle = load_bundle(store, *resolve(store, str(config.model)))
    plan, listing = _plan(config, store, bundle)
    claim(out, plan)
    done = _done(out, listing, plan)
    missing = [part for part in listing.parts if part.output not in done]
    log_event("predict", model=plan.model, images=plan.num_images, parts=plan.num_parts, parts_done=len(done), out=out.uri)
    if missing:
        task = Task(
            store=store.uri,
            name=bundle.spec.name,
            version=bundle.version,
            runtime=config.runtime,
            num_threads=config.cpus_per_worker,
            out=out.uri,
            plan=plan.digest,
        )
        _run_parts(missing, task, config)
        done = _done(out, listing, plan)
    record = _record(plan, bundle, list(done.values()))
    write_record(out, record)
    log_event(
        "predict done", rows=plan.num_images, errors=record.num_errors, runtime="+".join(record.runtimes), out=out.locate(PARTS)
    )
    return record.num_errors


def _plan(config: PredictConfig, store: Store, bundle: Bundle) -> tuple[Plan, Listing]:
    """Lists the input, once."""
    inputs: tuple[str, ...] = config.images
    if config.dataset is not None:
        dataset = open_dataset(store, config.dataset)
        inputs, listing = (dataset.reference, config.split), list_dataset_parts(dataset, config.split)
    else:
        listing = list_image_parts(itertools.islice(find_images(config.images), config.limit), config.images_per_part)
    plan = Plan(
        model=bundle.reference,
        runtime=config.runtime,
        inputs=inputs,
        inputs_digest=listing.digest,
        images_per_part=config.images_per_part,
        num_images=listing.num_images,
        num_parts=len(listing.parts),
    )
    return plan, listing


def _done(out: Store, listing: Listing, plan: Plan) -> dict[str, PartSummary]:
    """Reads the footers of the parts that are there; ConfigError if one is of another plan."""
    there = {item.key for item in out.list(PARTS)}
    keys = [part.output for part in listing.parts if part.output in there]
    done = dict(zip(keys, read_summaries(out, keys), strict=True))
    for key, summary in done.items():
        if summary.plan != plan.digest:
            raise ConfigError(
                f"{out.locate(key)}: is of another prediction than plan.json; remove {PARTS} or take another --out"
            )
    return done


def _run_parts(parts: list[Part], task: Task, config: PredictConfig) -> None:
    connect_ray()
    items = ray.data.from_items([{"part": encode_part(part)} for part in parts], override_num_blocks=len(parts))
    with warnings.catch_warnings():
        # Ray deprecates max_task_retries and names nothing in its place; without it a part is tried for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        rows = items.map(
            PartWriter,  # type: ignore[arg-type] # Ray's hint knows no classes
            fn_constructor_args=[task],
            compute=ray.data.ActorPoolStrategy(size=min(config.num_workers, len(parts)), max_tasks_in_flight_per_actor=2),
            num_cpus=config.cpus_per_worker,
            num_gpus=1 if config.use_gpu else 0,
            max_task_retries=_TRIES_AFTER_DEATH,
        )
    try:
        for _ in run_pipeline(rows, "predict: parts written", len(parts)):
            pass
    except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise ServingError(
            f"{task.out}: workers died {_TRIES_AFTER_DEATH + 1} times over one part ({type(error).__name__}); give them more "
            "memory, or find the image that kills its decoder; what is written stays, and the same command goes on"
        ) from error


def _record(plan: Plan, bundle: Bundle, summaries: list[PartSummary]) -> PredictionsRecord:
    num_rows = sum(summary.num_rows for summary in summaries)
    if num_rows != plan.num_images:
        raise StorageError(f"{num_rows} rows stand in the parts where {plan.num_images} are due; run the same command again")
    return PredictionsRecord(
        **plan.model_dump(),
        dataset=bundle.spec.dataset,
        dataset_digest=bundle.spec.dataset_digest,
        classes=bundle.spec.classes,
        runtimes=tuple(sorted({summary.runtime for summary in summaries})),
        num_errors=sum(summary.num_errors for summary in summaries),
        historay=version("historay"),
    )
