"""Check what documents and the page say against the code."""

import re
import subprocess
from importlib import resources
from pathlib import Path

from orchestrator.v1.event_pb2 import Event

ROOT = Path(__file__).parents[2]


def test_every_test_named_in_the_table_of_failures_exists() -> None:
    paths = [path for kind in ("unit", "integration") for path in (ROOT / "tests" / kind).glob("test_*.py")]
    files = {path.name: path.read_text() for path in paths}
    named = re.findall(r"`(test_\w+)`(?: \(`(test_\w+\.py)`\))?", (ROOT / "docs/models.md").read_text())
    assert len(named) > 40
    for name, file in named:
        assert f"def {name}(" in files[file or "test_misbehaving_endpoints.py"], name


def test_every_test_named_for_a_threat_exists() -> None:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text())
    assert len(named) > 40
    assert [name for name in named if not any(f"def {name}(" in source for source in sources)] == []


def test_the_tree_in_the_readme_has_every_file_and_folder() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [path.split("/") for path in listed.splitlines()]
    names = {path[0] for path in paths} | {path[2] for path in paths if path[:2] == ["src", "orchestrator"]}
    tree = (ROOT / "README.md").read_text().split("## How it is built")[1].split("```")[3]
    shown = {part for word in re.findall(r"[\w./-]+", tree) for part in word.split("/")}
    assert names - shown == set()


def test_the_page_folds_every_kind_of_event() -> None:
    source = resources.files("orchestrator").joinpath("web/fold.js").read_text()
    cases = re.findall(r"^  (\w+)\(instance", source.split("const EVOLVE = {")[1], re.MULTILINE)
    payload = Event.DESCRIPTOR.oneofs_by_name["payload"]
    assert cases
    assert set(cases) == {field.camelcase_name for field in payload.fields}


def test_every_function_named_in_the_architecture_exists_in_its_module() -> None:
    document = (ROOT / "docs/architecture.md").read_text()
    placed = re.findall(r"`([\w.]+)`\s+(?:\(|in\s+)`([\w/]+\.py)`", document)
    assert len(placed) > 10
    for name, module in placed:
        source = (ROOT / "src/orchestrator" / module).read_text()
        for part in name.split("."):
            assert re.search(rf"\b(?:def|class) {part}\b|^{part}\b.* = ", source, re.MULTILINE), name
