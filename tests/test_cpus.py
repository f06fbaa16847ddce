"""A process in a container uses the CPUs that it may use, not those of the machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from historay.cpus import available_cpus
from historay.training.worker import threads_per_worker

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def one_cpu() -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("text", ["100000 100000\n", "50000 100000\n", "1000 100000"])
def test_the_limit_of_a_pod_counts_rounded_up(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert available_cpus(tmp_path) == 1


@pytest.mark.parametrize(("quota", "expected"), [("100000\n", 1), ("-1\n", HERE)])
def test_so_does_that_of_an_older_kernel(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == expected


def test_without_a_limit_all_cpus_count(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == HERE
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == HERE


def test_a_process_bound_to_one_cpu_has_one(tmp_path: Path, one_cpu: None) -> None:
    assert available_cpus(tmp_path) == 1
    assert threads_per_worker(workers_here=1) == 1
