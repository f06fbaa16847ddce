"""Batches by demand: whenever a stream of the network is free it takes all that waits, up to the largest batch.

Alone, a request is worked on at once; under load the batches grow by themselves, and nobody waits for a timer.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class QueueFull(Exception):
    """More is waiting than may wait."""


@dataclass(eq=False)
class _Job(Generic[T, R]):
    """What one request asks: items, of which some are taken, and the results found so far."""

    items: Sequence[T]
    done: "asyncio.Future[list[R]]"
    since: float = field(default_factory=time.perf_counter)
    num_taken: int = 0
    results: dict[int, R] = field(default_factory=dict)


class Batcher(Generic[T, R]):
    """Runs ``work`` on batches in ``num_streams`` threads; belongs to one event loop.

    ``observe_wait`` is told the seconds that each request waited for its first batch. ``work`` returns one result per item;
    an error of it reaches every request that had an item in that batch.
    """

    def __init__(
        self,
        work: Callable[[list[T]], list[R]],
        num_streams: int,
        max_batch: int,
        max_waiting: int,
        observe_wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._work, self._observe_wait = work, observe_wait
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._threads = ThreadPoolExecutor(num_streams, thread_name_prefix="network")
        self._num_free = num_streams
        self._jobs: deque[_Job[T, R]] = deque()
        self._running: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self.num_waiting = 0

    async def run(self, items: Sequence[T]) -> list[R]:
        """Returns the results in order; raises QueueFull if others wait already and these would make it too many.

        A request that is cancelled gives up its place: what was not taken of it is never run.
        """
        if not items:
            return []
        self.check_room(len(items))
        job: _Job[T, R] = _Job(items, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.num_waiting += len(items)
        self._start()
        try:
            return await job.done
        except asyncio.CancelledError:
            self._forget(job)
            raise

    def check_room(self, num_items: int) -> None:
        """Raises QueueFull if others wait already and so many items more would make it too many."""
        if self._jobs and self.num_waiting + num_items > self._max_waiting:
            raise QueueFull

    def close(self) -> None:
        """Ends the threads when what they run is done."""
        self._threads.shutdown(wait=False)

    def _start(self) -> None:
        while self._num_free and self._jobs:
            self._num_free -= 1
            task = asyncio.get_running_loop().create_task(self._run_batch(self._take()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self) -> list[tuple[_Job[T, R], int]]:
        """Takes the oldest items, of as many requests as fit."""
        batch: list[tuple[_Job[T, R], int]] = []
        while self._jobs and len(batch) < self._max_batch:
            job = self._jobs[0]
            if job.num_taken == 0:
                self._observe_wait(time.perf_counter() - job.since)
            end = min(len(job.items), job.num_taken + self._max_batch - len(batch))
            batch.extend((job, index) for index in range(job.num_taken, end))
            job.num_taken = end
            if end == len(job.items):
                self._jobs.popleft()
        self.num_waiting -= len(batch)
        return batch

    async def _run_batch(self, batch: list[tuple[_Job[T, R], int]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._threads, self._work, [job.items[index] for job, index in batch])
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._fail({job for job, _ in batch}, error)
        else:
            for (job, index), result in zip(batch, results, strict=True):
                job.results[index] = result
            for job in {job for job, _ in batch}:
                if len(job.results) == len(job.items) and not job.done.done():
                    job.done.set_result([job.results[index] for index in range(len(job.items))])
        finally:
            self._num_free += 1
            self._start()

    def _fail(self, jobs: set[_Job[T, R]], error: Exception) -> None:
        for job in jobs:
            self._forget(job)
            if not job.done.done():
                job.done.set_exception(error)

    def _forget(self, job: _Job[T, R]) -> None:
        """Takes out of the queue what of a job was not taken yet."""
        if job in self._jobs:
            self._jobs.remove(job)
            self.num_waiting -= len(job.items) - job.num_taken
