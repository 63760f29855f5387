"""What the documents say of the tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_table_of_failures_names_is_there() -> None:
    paths = [path for kind in ("unit", "integration") for path in (ROOT / "tests" / kind).glob("test_*.py")]
    files = {path.name: path.read_text() for path in paths}
    named = re.findall(r"`(test_\w+)`(?: \(`(test_\w+\.py)`\))?", (ROOT / "docs/models.md").read_text())
    assert len(named) > 40
    for name, file in named:
        assert f"def {name}(" in files[file or "test_misbehaving_endpoints.py"], name
