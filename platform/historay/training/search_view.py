"""What a search shows while it runs: a live table on a terminal, a line per ended trial and every half minute in a pod."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from historay.log import log_event
from historay.training.settings import Monitor
from historay.training.study import TrialRecord, num_ended, ranked

_LINE_EVERY_S = 30.0
_SHOWN_ENDED = 8  # a terminal has some 40 lines


@dataclass
class Progress:
    """How far a search has come; the driver keeps it up to date."""

    search: str
    monitor: Monitor
    max_trials: int
    concurrent: int
    deadline: float  # of time.monotonic()
    trials: dict[str, TrialRecord] = field(default_factory=dict)  # by run

    @property
    def running(self) -> list[TrialRecord]:
        """Trials in flight."""
        return [trial for trial in self.trials.values() if trial.status == "running"]

    @property
    def ended(self) -> list[TrialRecord]:
        """Trials that are complete, stopped or failed."""
        return [trial for trial in self.trials.values() if trial.status != "running"]

    @property
    def best(self) -> TrialRecord | None:
        """The best trial that has ended."""
        return next(iter(ranked(self.ended, self.monitor)), None)

    def left_s(self, now: float) -> float:
        """Estimates the seconds that are left, from the mean trial; never more than to the deadline."""
        to_deadline = max(0.0, self.deadline - now)
        if not self.ended:
            return to_deadline
        mean = sum(trial.seconds for trial in self.ended) / len(self.ended)
        return min(to_deadline, mean * (self.max_trials - num_ended(self.trials.values())) / self.concurrent)


class View(Protocol):
    """What the driver tells."""

    def update(self, progress: Progress) -> None:
        """Shows how it stands, often."""

    def ended(self, progress: Progress, trial: TrialRecord) -> None:
        """Shows a trial's end, once."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


def open_view() -> View:
    """Returns the live table on a terminal, else log lines."""
    console = Console(stderr=True)
    return _Live(console) if console.is_terminal else _Lines()


def table(progress: Progress, now: float) -> Table:
    """Draws the search: the best and running trials and the latest that ended, and what is left."""
    done = num_ended(progress.trials.values())
    title = f"{progress.search}: {done} of {progress.max_trials} trials, {_time(progress.left_s(now))} left"
    drawn = Table("trial", "status", progress.monitor, "epochs", "time", "tries", title=title, title_justify="left")
    best = progress.best
    latest = [trial for trial in progress.ended if trial is not best][-_SHOWN_ENDED:]
    for trial in ([best] if best else []) + progress.running + latest[::-1]:
        value = f"{trial.value:.4f}" if trial.value is not None else "-"
        tries = " ".join(f"{name}={_short(tried)}" for name, tried in trial.params.items())
        status = "best so far" if trial is best else trial.status
        drawn.add_row(str(trial.number), status, value, str(len(trial.curve)), _time(trial.seconds), tries)
    return drawn


class _Live:
    """One table that is drawn again in its place."""

    def __init__(self, console: Console) -> None:
        self.live = Live(console=console, auto_refresh=False)
        self.live.start()

    def update(self, progress: Progress) -> None:
        self.live.update(table(progress, time.monotonic()), refresh=True)

    def ended(self, progress: Progress, _: TrialRecord) -> None:
        self.update(progress)

    def close(self) -> None:
        self.live.stop()


class _Lines:
    """A line when a trial ends, and one every half minute."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.last < _LINE_EVERY_S:
            return
        self.last = now
        running = ",".join(f"{trial.number}@{len(trial.curve)}" for trial in progress.running) or "none"
        log_event("search", ended=_of(progress), running=running, best=_best(progress), left_s=round(progress.left_s(now)))

    def ended(self, progress: Progress, trial: TrialRecord) -> None:
        shown: dict[str, object] = {progress.monitor: trial.value} if trial.value is not None else {"error": trial.error}
        log_event(
            f"trial {trial.status}", number=trial.number, run=trial.run, epochs=len(trial.curve), **shown,
            seconds=round(trial.seconds, 1), ended=_of(progress), best=_best(progress),
        )  # fmt: skip

    def close(self) -> None:
        """Lines need no end."""


def _of(progress: Progress) -> str:
    return f"{num_ended(progress.trials.values())}/{progress.max_trials}"


def _best(progress: Progress) -> object:
    return progress.best.value if progress.best else "none"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
