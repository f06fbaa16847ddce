"""How many CPUs this process may use: in a pod fewer than its node has."""

import math
import os
from pathlib import Path

_UNLIMITED = float(2**31)


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the CPUs that affinity and the container's limit leave to this process; at least 1.

    A limit of 2.5 CPUs counts as 3. os.cpu_count() knows neither, so that 4 of a node's 64 CPUs would get 64 threads.
    """
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(ours, math.ceil(_limit(cgroup))))


def _limit(cgroup: Path) -> float:
    """CPUs' time over time, from the files of version 2 or 1 of Linux's control groups."""
    try:
        if (unified := cgroup / "cpu.max").exists():
            quota, period = unified.read_text().split()
        else:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = float(quota) / float(period)  # "max" and -1: no limit
    except (OSError, ValueError):
        return _UNLIMITED
    return limit if limit > 0 else _UNLIMITED
