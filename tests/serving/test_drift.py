"""The monitor remembers exactly the last tiles, whatever the batches and threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from historay.evaluation.drift import fit_drift_reference
from historay.evaluation.tile_statistics import STAIN_NAMES
from historay.serving.drift import DriftMonitor

RNG = np.random.default_rng(0)
POSITIVE = RNG.beta(0.4, 0.4, 4000)
PROBABILITIES, STAINS = np.column_stack([1 - POSITIVE, POSITIVE]), RNG.normal(size=(4000, len(STAIN_NAMES)))
REFERENCE = fit_drift_reference(PROBABILITIES[:2000], STAINS[:2000], ("normal", "tumour"))


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(0, 90), max_size=12), window=st.integers(1, 120))
def test_the_summary_is_that_of_the_last_tiles_alone(sizes: list[int], window: int) -> None:
    monitor, start = DriftMonitor(REFERENCE, window), 0
    for size in sizes:
        monitor.observe(PROBABILITIES[start : start + size], STAINS[start : start + size])
        start += size
    afresh = DriftMonitor(REFERENCE, window)
    last = slice(max(start - window, 0), start)
    afresh.observe(PROBABILITIES[last], STAINS[last])
    assert monitor.summary() == afresh.summary()
    assert monitor.summary().num_tiles == min(start, window)


def test_no_tile_is_lost_between_threads() -> None:
    monitor, alone = DriftMonitor(REFERENCE), DriftMonitor(REFERENCE)
    alone.observe(PROBABILITIES, STAINS)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: monitor.observe(PROBABILITIES[n : n + 8], STAINS[n : n + 8]), range(0, 4000, 8)))
    assert monitor.summary() == alone.summary()


def test_it_is_quiet_speaks_when_the_stain_changes_and_is_quiet_again_when_that_is_over() -> None:
    monitor = DriftMonitor(REFERENCE, 1000)

    def alerts(shift: float) -> set[str]:
        monitor.observe(PROBABILITIES[2000:3000], STAINS[2000:3000] + shift)
        return {one.quantity for one in monitor.summary().quantities if one.alert}

    assert alerts(0.0) == set()
    assert alerts(0.6) == set(STAIN_NAMES)
    assert alerts(0.0) == set()


def test_memory_does_not_grow_with_the_tiles_served() -> None:
    monitor = DriftMonitor(REFERENCE, 500)
    before = {name: value.nbytes for name, value in vars(monitor).items() if isinstance(value, np.ndarray)}
    for _ in range(20):
        monitor.observe(PROBABILITIES, STAINS)
    assert {name: value.nbytes for name, value in vars(monitor).items() if isinstance(value, np.ndarray)} == before
    assert sum(before.values()) < 10_000
    assert monitor.summary().num_tiles == 500


def test_each_quantity_says_what_it_is_and_what_would_be_usual() -> None:
    monitor = DriftMonitor(REFERENCE, 1000)
    monitor.observe(PROBABILITIES[2000:3000], STAINS[2000:3000])
    summary = monitor.summary()
    assert [one.quantity for one in summary.quantities] == ["probability of normal", "probability of tumour", *STAIN_NAMES]
    assert all(one.expected == pytest.approx(9 * (1 / 1000 + 1 / 2000)) for one in summary.quantities)
    assert all(one.value < one.limit for one in summary.quantities)
