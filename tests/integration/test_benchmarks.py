"""The benchmarks run, at sizes at which their figures mean nothing."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "engine.py": ("--instances 5 --repeats 1 --alone 5", 8, "one instance alone"),
    "files.py": ("0.01", 30, "markdown-it-py"),
    "followers.py": ("--instances 20 --followers 0 2 --seconds 0.1", 30, "the oldest id"),
    "inserts.py": ("--seconds 0.05", 6, "json_each"),
    "references.py": ("--speed 10000 --lines 10", 14, "by reference"),
    "retention.py": ("--instances 20 --rate 50 --seconds 0.2 --repeats 1", 11, "beside a sweep"),
    "loop.py": ("--kilobytes 8 --instances 5 --events 100", 130, "queued instances, loaded"),
    "http_transports.py": ("--repeats 1 --calls 64", 10, "| aiohttp |"),
    "models.py": ("--small", 20, "calls: provider, streamed"),
}
"""Each script's arguments, the least number of figures it prints, and what it prints last."""


def test_every_benchmark_is_run_here_and_by_make_bench() -> None:
    assert {path.name for path in BENCHMARKS.glob("*.py")} == set(SMALL)
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    assert set(re.findall(r"benchmarks/(\w+\.py)", makefile)) == set(SMALL)


@pytest.mark.parametrize("script", SMALL)
async def test_a_benchmark_prints_its_figures(script: str, tmp_path: Path) -> None:
    arguments, figures, last = SMALL[script]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        BENCHMARKS / script,
        *arguments.split(),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert errors == b""
    assert last in output.decode()
    assert len(re.findall(r"\b\d[\d,.]*", output.decode())) >= figures
