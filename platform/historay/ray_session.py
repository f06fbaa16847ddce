"""Joins the Ray cluster named by RAY_ADDRESS, or starts one on this machine that listens on loopback only; runs pipelines."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from historay.cpus import available_cpus
from historay.errors import HistorayError
from historay.log import log_event, track

# A laptop's Ray counts CPUs to place actors, not to pin them: two workers and a driver must fit.
_MIN_LOCAL_CPUS = 4
_STARTS = 4


def connect_ray() -> None:
    """Connects this process to Ray once; inside a RayJob or with RAY_ADDRESS set it joins, else it starts a local cluster."""
    if ray.is_initialized():
        return
    # Ray Data prints pages of its own progress; Historay shows one line instead.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Else a worker's error arrives as Ray's own, which has forgotten ours.
    context.raise_original_map_exception = True
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
        log_event("ray joined", address=os.environ["RAY_ADDRESS"])
        return
    cpus = max(_MIN_LOCAL_CPUS, available_cpus())
    _start_local(cpus)
    log_event("ray started", address="local", cpus=cpus)


def _start_local(cpus: int) -> None:
    """Starts Ray here, again if it must: it gives its own processes a fixed 30 s, which a busy machine may not have."""
    for attempt in range(1, _STARTS + 1):
        try:
            # What workers print stays in Ray's log files; what a user needs comes back as progress, metrics and errors.
            ray.init(
                address="local", num_cpus=cpus, dashboard_host="127.0.0.1", logging_level=logging.ERROR, log_to_driver=False
            )
        except Exception as error:  # Ray has no class of its own for it
            if "timed out during startup" not in str(error):
                raise
            log_event("WARNING ray did not start within its 30 s", attempt=attempt, of=_STARTS)
            ray.shutdown()
        else:
            return
    raise HistorayError(f"Ray did not start within its 30 s, {_STARTS} times over; the machine is too busy: try again later")


def run_pipeline(rows: ray.data.Dataset, what: str, total: int) -> Iterator[dict[str, Any]]:
    """Runs a Ray Data pipeline, with progress, and yields its rows; our own errors come out of the workers as they are."""
    try:
        yield from track(rows.iter_rows(), what, total=total)
    except HistorayError as error:
        # Raised in a worker: Ray makes it an exception of both kinds and adds lines of its own to the message.
        if not isinstance(error, ray.exceptions.RayTaskError):
            raise
        raise type(error.cause)(str(error.cause).partition("\nFailed to apply UDF")[0]) from None
