"""Counters and histograms that cost the event loop next to nothing until they are read.

prometheus_client's own lock and look their labels up at each step, which took a sixth of
an instance's CPU time.
Here everything happens on one event loop, so a dictionary does.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

PREFIX: Final = "orchestrator_"
Labels = tuple[str, ...]


def gauge(name: str, text: str, labels: Labels, values: Mapping[Labels, float]) -> GaugeMetricFamily:
    """Return values as they are now."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for combination, value in values.items():
        family.add_metric(combination, value)
    return family


class Tally:
    """Counts, for each combination of labels."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._description = (PREFIX + name, text)
        self._labels = labels
        # Without labels there is one count, from the start; others begin when they are first counted.
        self._counts: defaultdict[Labels, float] = defaultdict(float, {} if labels else {(): 0.0})
        self._marked: Mapping[Labels, float] = {}

    def add(self, labels: Labels = (), amount: float = 1.0) -> None:
        """Add to the count of these labels."""
        self._counts[labels] += amount

    def mark(self) -> None:
        """Remember the counts as they are now."""
        self._marked = dict(self._counts)

    def counter(self) -> CounterMetricFamily:
        """Return the counts as a counter."""
        family = CounterMetricFamily(*self._description, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        return family

    def since_mark(self, name: str, text: str) -> GaugeMetricFamily:
        """Return what was added since the counts were marked last, under another name."""
        values = {labels: count - self._marked.get(labels, 0.0) for labels, count in self._counts.items()}
        return gauge(PREFIX + name, text, self._labels, values)


class Distribution:
    """Counts values by size, for each combination of labels."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> None:
        """`bounds` are the largest values of each bucket, in order; one bucket more holds what is larger."""
        self._description = (PREFIX + name, text)
        self._labels = labels
        self._bounds = bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums: defaultdict[Labels, float] = defaultdict(float)

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count a value."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def histogram(self) -> HistogramMetricFamily:
        """Return the counts as a histogram."""
        family = HistogramMetricFamily(*self._description, labels=self._labels)
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        for labels, counts in self._counts.items():
            family.add_metric(labels, list(zip(names, accumulate(counts), strict=True)), self._sums[labels])
        return family
