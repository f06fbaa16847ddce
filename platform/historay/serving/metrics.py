"""What the endpoint measures of itself: names, meaning and buckets here; who collects the numbers is a seam.

A single process collects them with prometheus_client and answers GET /metrics. Behind Ray Serve each replica is a process of
its own, which /metrics would meet by lot: there a ``Collector`` over ray.util.metrics hands them to the node's metrics port.
No label holds what a client wrote: routes, statuses, reasons and classes are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from historay.serving.schema import ImagePrediction, PredictAnswer, Result

Stage = Literal["receive", "decode", "queue", "network", "answer"]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TILES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True)
class Metric:
    """One metric, as any collector makes it; a counter's name gets ``_total`` from the collector."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS = Metric("historay_requests", "counter", "Requests answered.", ("route", "status"))
REQUEST_SECONDS = Metric("historay_request_seconds", "histogram", "From a request's head to its answer.", ("route",), _SECONDS)
STAGE_SECONDS = Metric("historay_stage_seconds", "histogram", "Time of a request in one stage.", ("stage",), _SECONDS)
BATCH_TILES = Metric("historay_batch_tiles", "histogram", "Tiles in one pass of the network.", (), _TILES)
QUEUED_TILES = Metric("historay_queued_tiles", "gauge", "Tiles that wait for the network.")
PREDICTIONS = Metric("historay_predictions", "counter", "Tiles by the label answered.", ("label",))
ABSTENTIONS = Metric("historay_abstentions", "counter", "Tiles whose label should not be relied on.")
REFUSED_TILES = Metric("historay_refused_tiles", "counter", "Tiles that could not be used.", ("reason",))
GATED_TILES = Metric("historay_gated_tiles", "counter", "Tiles that the input gate warned of.", ("reason",))
DRIFT = Metric("historay_drift", "gauge", "Distance of what is asked lately from the bundle's reference.", ("measure",))
AUDIT_LOST = Metric("historay_audit_lost", "counter", "Lines of the audit log that could not be written.")
METRICS = (
    REQUESTS,
    REQUEST_SECONDS,
    STAGE_SECONDS,
    BATCH_TILES,
    QUEUED_TILES,
    PREDICTIONS,
    ABSTENTIONS,
    REFUSED_TILES,
    GATED_TILES,
    DRIFT,
    AUDIT_LOST,
)


class Collector(Protocol):
    """Takes numbers in, from any thread; ``values`` are those of the metric's labels, in their order."""

    def add(self, metric: Metric, values: tuple[str, ...], amount: float) -> None:
        """Adds to a counter."""

    def set(self, metric: Metric, values: tuple[str, ...], value: float) -> None:
        """Sets a gauge."""

    def observe(self, metric: Metric, values: tuple[str, ...], value: float) -> None:
        """Puts a value into a histogram."""

    def exposition(self) -> bytes | None:
        """Returns all numbers as Prometheus text, or hands them over where they leave another way, and returns None."""


class PrometheusCollector:
    """Keeps the numbers in this process, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters = {each: Counter(each.name, each.help, each.labels, registry=self._registry) for each in _of("counter")}
        self._gauges = {each: Gauge(each.name, each.help, each.labels, registry=self._registry) for each in _of("gauge")}
        self._histograms = {
            each: Histogram(each.name, each.help, each.labels, registry=self._registry, buckets=each.buckets)
            for each in _of("histogram")
        }

    def add(self, metric: Metric, values: tuple[str, ...], amount: float) -> None:
        counter = self._counters[metric]
        (counter.labels(*values) if values else counter).inc(amount)

    def set(self, metric: Metric, values: tuple[str, ...], value: float) -> None:
        gauge = self._gauges[metric]
        (gauge.labels(*values) if values else gauge).set(value)

    def observe(self, metric: Metric, values: tuple[str, ...], value: float) -> None:
        histogram = self._histograms[metric]
        (histogram.labels(*values) if values else histogram).observe(value)

    def exposition(self) -> bytes | None:
        return generate_latest(self._registry)


class Metrics:
    """What the code that serves calls, by meaning."""

    def __init__(self, collector: Collector | None = None) -> None:
        self._collector: Collector = PrometheusCollector() if collector is None else collector
        self._drift: Callable[[], Mapping[str, float]] | None = None
        self._queue: Callable[[], int] | None = None

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """Notes how long a request, or a batch, was in a stage."""
        self._collector.observe(STAGE_SECONDS, (stage,), seconds)

    def observe_batch(self, num_tiles: int) -> None:
        """Notes how many tiles one pass of the network took."""
        self._collector.observe(BATCH_TILES, (), num_tiles)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request and notes how long it took."""
        self._collector.add(REQUESTS, (route, str(status)), 1)
        self._collector.observe(REQUEST_SECONDS, (route,), seconds)

    def count_answer(self, answer: PredictAnswer) -> None:
        """Counts the labels, abstentions and refusals of one answer."""
        self.count_results(answer.results)

    def count_results(self, results: Sequence[Result]) -> None:
        """Counts the labels, abstentions and refusals among the results of one request."""
        for result in results:
            if isinstance(result, ImagePrediction):
                self._collector.add(PREDICTIONS, (result.label,), 1)
                self._collector.add(ABSTENTIONS, (), bool(result.abstain))
                for reason in result.input.reasons if result.input is not None else ():
                    self.count_gated(reason.code)
            else:
                self._collector.add(REFUSED_TILES, (result.error.reason,), 1)

    def count_gated(self, reason: str) -> None:
        """Counts a tile that the input gate warned of, by its short code."""
        self._collector.add(GATED_TILES, (reason,), 1)

    def count_audit_lost(self, num_lines: int = 1) -> None:
        """Counts lines of the audit log that could not be written."""
        self._collector.add(AUDIT_LOST, (), num_lines)

    def watch_queue(self, num_waiting: Callable[[], int]) -> None:
        """Names what tells how many tiles wait."""
        self._queue = num_waiting

    def watch_drift(self, summary: Callable[[], Mapping[str, float]]) -> None:
        """Names what tells each measure of drift, as DriftMonitor.summary does."""
        self._drift = summary

    def _refresh(self) -> None:
        """Takes over what is watched."""
        if self._queue is not None:
            self._collector.set(QUEUED_TILES, (), self._queue())
        if self._drift is not None:
            for measure, value in self._drift().items():
                self._collector.set(DRIFT, (measure,), value)

    def exposition(self) -> bytes | None:
        """Returns all numbers as Prometheus text, or hands them over where they leave another way, and returns None."""
        self._refresh()
        return self._collector.exposition()


def _of(kind: str) -> list[Metric]:
    return [metric for metric in METRICS if metric.kind == kind]
