"""What the project brings for Prometheus and Grafana fits what the service says."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.process import on_endpoint, process
from support.prometheus import program

from orchestrator.client import Client

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = ROOT / "deploy/grafana/orchestrator.json"
_SUFFIXES = re.compile(r"_(total|bucket|sum|count)$")


@pytest.mark.parametrize("command", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_finds_no_fault_with_the_rules(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *command], cwd=RULES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_each_alert_says_what_happened_and_the_documentation_what_to_do() -> None:
    documentation = (ROOT / "docs/operations.md").read_text()
    documented = set(re.findall(r"^### (Orchestrator\w+)$", documentation, re.MULTILINE))
    assert {rule["alert"] for rule in rules()} == documented
    for rule in rules():
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


async def test_rules_dashboard_and_documentation_name_metrics_that_there_are(tmp_path: Path) -> None:
    async with (
        process(tmp_path, **on_endpoint("http://127.0.0.1:9/v1")) as service,
        Client(service.grpc_address) as client,
    ):
        families = list(text_string_to_metric_families(await client.metrics()))
    names = {family.name for family in families}
    used = {name for each in expressions() for name in re.findall(r"\b(?:orchestrator|process)_\w+", each)}
    bare = {_SUFFIXES.sub("", name) for name in names}
    assert {_SUFFIXES.sub("", name) for name in used} <= bare
    own = {name.removeprefix("orchestrator_") for name in names if name.startswith("orchestrator_")}
    table = (ROOT / "docs/operations.md").read_text().split("## Metrics")[1].split("## Alerts")[0]
    documented = {
        re.sub(r"_total$", "", name)
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert own == documented
