"""Logging as ``event key=value`` lines on standard error, and progress that fits a terminal or a pod."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")
LOGGER = logging.getLogger("historay")


def setup_logging(level: int = logging.INFO) -> None:
    """Sends Historay's log lines to standard error; called by the command line and by workers, never at import."""
    if not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
    LOGGER.setLevel(level)


def log_event(event: str, **fields: object) -> None:
    """Logs one line ``event key=value``; floats get four significant digits, texts with spaces get quotes."""
    LOGGER.info(" ".join([event, *(f"{key}={_shown(value)}" for key, value in fields.items())]))


def _shown(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text


def track(
    items: Iterable[T], what: str, total: int | None = None, *, size: Callable[[T], int] = lambda _: 1, every_s: float = 10.0
) -> Iterator[T]:
    """Yields the items with a progress bar on a terminal, else with a log line every ``every_s`` seconds.

    ``total`` is of what ``size`` counts in an item, e.g. the tiles of a batch.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(what, total=total)
            for item in items:
                yield item
                progress.advance(task, size(item))
        return
    last, num_done = time.monotonic(), 0
    for item in items:
        yield item
        num_done += size(item)
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            log_event(what, done=num_done, total=total if total is not None else "?")
