"""Prometheus' own programs, and what a service's metrics are."""

import shutil
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(__file__).parents[1] / "prometheus"


def program(name: str) -> str:
    """Find `prometheus` or `promtool`, as `make install` has them."""
    found = shutil.which(name) or str(FOLDER / "usr/bin" / name)
    assert Path(found).exists(), f"there is no {name}: make install"
    return found


class Samples:
    """The samples of one scrape: `samples("orchestrator_tokens_total", direction="input")`."""

    def __init__(self, text: str) -> None:
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that have the labels; fail where there are none."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no {name} with {labels}"
        return sum(found)

    def values(self, name: str, label: str) -> set[str]:
        """Return the values that a label has in the samples of a name."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}
