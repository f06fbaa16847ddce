"""Joins the Ray cluster named by RAY_ADDRESS, or starts one on this machine that listens on loopback only."""

import logging
import os

import ray
import ray.data

from historay.log import log_event

# A laptop's Ray counts CPUs to place actors, not to pin them: fewer than four and a two-worker run with its reader,
# its controller and its coordinator can wait for itself for ever.
_MIN_LOCAL_CPUS = 4


def connect_ray() -> None:
    """Connects this process to Ray once; inside a RayJob or with RAY_ADDRESS set it joins, else it starts a local cluster."""
    if ray.is_initialized():
        return
    # Ray Data prints pages of its own progress; Historay shows one line instead.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
        log_event("ray joined", address=os.environ["RAY_ADDRESS"])
        return
    cpus = max(_MIN_LOCAL_CPUS, os.cpu_count() or 1)
    # What workers print stays in Ray's log files; what a user needs comes back as progress, metrics and errors.
    ray.init(address="local", num_cpus=cpus, dashboard_host="127.0.0.1", logging_level=logging.ERROR, log_to_driver=False)
    log_event("ray started", address="local", cpus=cpus)
