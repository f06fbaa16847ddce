"""Hands the endpoint's numbers to Ray, whose metrics port on each node Prometheus scrapes."""

from typing import Any

from ray.serve.metrics import Gauge

from historay.serving.metrics import PrometheusCollector


class RayCollector(PrometheusCollector):
    """A ``Collector`` of one replica's process, whose every series is one gauge of Ray's; Ray adds the replica's labels.

    Ray's own counters and histograms let go of the interpreter's lock at each observation, which held up every request under
    load. Summed up here and handed over now and then, the series bear the names and values that Prometheus expects of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._series: dict[str, Any] = {}

    def exposition(self) -> None:
        """Hands all numbers over and returns nothing: they are on the node's metrics port."""
        for family in self._registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self._gauge(sample.name, family.documentation, tuple(sample.labels)).set(sample.value, tags=sample.labels)

    def _gauge(self, name: str, description: str, labels: Any) -> Any:  # Ray's annotation says one label, its code takes any
        if name not in self._series:
            self._series[name] = Gauge(name, description, tag_keys=labels)
        return self._series[name]
