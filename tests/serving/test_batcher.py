"""Every request gets its own results in its own order, whatever is batched with it, fails beside it or is given up."""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from historay.serving.batcher import Batcher, QueueFull


class Recorder:
    """Doubles numbers and remembers the batches; holds them back while the gate is closed."""

    def __init__(self, is_open: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        assert self.gate.wait(10)
        if -1 in items:
            raise ValueError("a bad item")
        return [2 * item for item in items]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@given(
    requests=st.lists(st.lists(st.integers(0, 1000), max_size=9), max_size=12),
    max_batch=st.integers(1, 7),
    num_streams=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_each_request_gets_its_own_results_in_order(requests: list[list[int]], max_batch: int, num_streams: int) -> None:
    work = Recorder()

    async def test() -> None:
        batcher = Batcher(work, num_streams, max_batch, max_waiting=10_000)
        found = await asyncio.gather(*(batcher.run(items) for items in requests))
        assert found == [[2 * item for item in items] for items in requests]
        assert batcher.num_waiting == 0
        batcher.close()

    run(test)
    assert all(0 < len(batch) <= max_batch for batch in work.batches)
    assert sorted(itertools.chain(*work.batches)) == sorted(itertools.chain(*requests))


def test_a_lone_request_starts_at_once_and_those_behind_it_share_the_next_batch() -> None:
    work = Recorder(is_open=False)

    async def test() -> None:
        batcher = Batcher(work, 1, 32, max_waiting=100)
        first = asyncio.create_task(batcher.run([0]))
        await until(lambda: work.batches == [[0]])
        others = [asyncio.create_task(batcher.run([number])) for number in range(1, 6)]
        await until(lambda: batcher.num_waiting == 5)
        work.gate.set()
        assert await asyncio.gather(first, *others) == [[0], [2], [4], [6], [8], [10]]
        assert work.batches == [[0], [1, 2, 3, 4, 5]]

    run(test)


def test_a_full_queue_refuses_at_once_and_takes_requests_again_when_it_has_emptied() -> None:
    work = Recorder(is_open=False)

    async def test() -> None:
        batcher = Batcher(work, 1, 2, max_waiting=3)
        running = asyncio.create_task(batcher.run([0]))
        await until(lambda: len(work.batches) == 1)
        waiting = asyncio.create_task(batcher.run([1, 2, 3]))
        await until(lambda: batcher.num_waiting == 3)
        with pytest.raises(QueueFull):
            await batcher.run([4])
        work.gate.set()
        assert await asyncio.gather(running, waiting) == [[0], [2, 4, 6]]
        assert await batcher.run([4, 5, 6, 7, 8]) == [8, 10, 12, 14, 16]

    run(test)


def test_a_request_that_is_given_up_leaves_the_queue_and_is_never_run() -> None:
    work = Recorder(is_open=False)

    async def test() -> None:
        batcher = Batcher(work, 1, 4, max_waiting=100)
        running = asyncio.create_task(batcher.run([0]))
        await until(lambda: len(work.batches) == 1)
        given_up = asyncio.create_task(batcher.run([7, 8]))
        behind = asyncio.create_task(batcher.run([1]))
        await until(lambda: batcher.num_waiting == 3)
        given_up.cancel()
        await until(lambda: batcher.num_waiting == 1)
        work.gate.set()
        assert await asyncio.gather(running, behind) == [[0], [2]]
        assert work.batches == [[0], [1]]

    run(test)


def test_an_error_reaches_the_requests_of_its_batch_and_no_others() -> None:
    work = Recorder(is_open=False)

    async def test() -> None:
        batcher = Batcher(work, 1, 3, max_waiting=100)
        before = asyncio.create_task(batcher.run([0]))
        await until(lambda: len(work.batches) == 1)
        spoilt = asyncio.create_task(batcher.run([1, -1, 2, 3, 4]))
        behind = asyncio.create_task(batcher.run([5]))
        await until(lambda: batcher.num_waiting == 6)
        work.gate.set()
        assert await before == [0]
        with pytest.raises(ValueError, match="a bad item"):
            await spoilt
        assert await behind == [10]
        assert batcher.num_waiting == 0

    run(test)
