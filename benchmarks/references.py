"""What a synthesis costs that refers to workers' files, beside one that writes them again.

    python benchmarks/references.py [--speed 100] [--lines 150]

A plan of eight subtasks, three files each. The models take time for each token, 60 a second the big one and
150 the small one, at so many times that speed; seconds are told as they would be without it. Three ways: the
synthesis refers to all files but one, which it changes; it writes all of them in full; and it does that in
waves, as the Cloudflare demo does, where no worker begins before the plan is whole.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.core import config, references
from orchestrator.core.create import NewInstance
from orchestrator.core.files import File, find_files, write_block
from orchestrator.core.identity import InstanceKey
from orchestrator.core.instance import Instance
from orchestrator.core.prompts import Full, Profile
from orchestrator.core.replies import ModelReply
from orchestrator.engine.local import LocalEngine
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.subscription import wait_for_end
from orchestrator.models.base import ModelRequest, Models, TextCallback
from orchestrator.models.prices import Prices

BIG, SMALL = "scripted/big", "scripted/small"
TOKENS_PER_S = {"big": 60.0, "small": 150.0}
PRICES = {BIG: {"input_usd": 3.0, "output_usd": 15.0}, SMALL: {"input_usd": 0.25, "output_usd": 1.25}}
"""US dollars for a million tokens: what models of these kinds cost."""
CHARACTERS_PER_TOKEN = 4
SUBTASKS, FILES = 8, 3
STEP_S = 0.005
PROSE = "This part reads what the one before it wrote, checks it, and hands it on to the next. " * 4
LINE = "    total_{0} = combine(total_{0}, value_{0})"


def tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


class Job(NamedTuple):
    """What the models write."""

    plan: str
    outputs: dict[str, str]
    by_reference: str
    in_full: str

    @classmethod
    def of(cls, lines: int) -> "Job":
        subtasks = [
            {"id": f"t{number}", "title": f"Package {number}", "instructions": PROSE}
            for number in range(1, SUBTASKS + 1)
        ]
        files = {
            f"t{subtask}": [
                File(
                    f"src/package_{subtask}/module_{number}.py",
                    "".join(LINE.format(f"{subtask}{number}{line:03}")[:39] + "\n" for line in range(lines)),
                    "python",
                )
                for number in range(FILES)
            ]
            for subtask in range(1, SUBTASKS + 1)
        }
        changed = files["t1"][0]._replace(content=files["t1"][0].content.replace("combine", "merge", 1))
        blocks = {file: write_block(file) for group in files.values() for file in group}
        blocks[files["t1"][0]] = write_block(changed)
        tags = {
            file: blocks[file] if file.path == changed.path else references.tag(f"{name}:{file.path}")
            for name, group in files.items()
            for file in group
        }
        return cls(
            json.dumps({"summary": PROSE, "subtasks": subtasks}),
            {name: "\n\n".join(map(write_block, group)) for name, group in files.items()},
            f"# Done\n\n{PROSE}\n\n" + "\n\n".join(tags.values()),
            f"# Done\n\n{PROSE}\n\n" + "\n\n".join(blocks.values()),
        )


class Waves(Full):
    """A plan is used when it is whole."""

    def plan_reader(self, instance: Instance) -> None:  # noqa: ARG002  as of every profile
        return None


class Model:
    """A provider that takes time for each token that it writes, and counts them."""

    def __init__(self, job: Job, synthesis: str, profile: Profile, speed: float) -> None:
        self.profile = profile
        self.synthesis_tokens = 0
        self._job = job
        self._synthesis = synthesis
        self._speed = speed

    def check(self, model: str) -> None:
        """Accept every model."""

    async def complete(self, request: ModelRequest, on_text: TextCallback | None = None) -> ModelReply:
        prompt = request.prompt
        text = {"planning": self._job.plan, "synthesis": self._synthesis}.get(prompt.role)
        text = text or self._job.outputs[prompt.subtask_id]
        async for piece in self._written(text, TOKENS_PER_S[request.model] * self._speed):
            if on_text is not None:
                on_text(piece)
        if prompt.role == "synthesis":
            self.synthesis_tokens += tokens(text)
        return ModelReply(text, sum(tokens(each.content) for each in prompt.messages), tokens(text))

    async def _written(self, text: str, per_s: float) -> AsyncIterator[str]:
        """Yield a text in the pieces that are written by each moment, however late that comes."""
        begin, done = time.perf_counter(), 0
        while done < len(text):
            await asyncio.sleep(STEP_S)
            written = int((time.perf_counter() - begin) * per_s) * CHARACTERS_PER_TOKEN
            yield text[done:written]
            done = max(done, written)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""


async def run(job: Job, model: Model, path: Path) -> tuple[float, float]:
    """Run the job; return the seconds from create to complete and the US dollars."""
    log = await SqliteEventLog.open(path)
    models = Models({"scripted": model}, Prices.read(PRICES))
    async with LocalEngine.running(log, models, max_calls=100) as engine:
        begin = time.perf_counter()
        await engine.create(NewInstance(id="job", prompt="Build it.", config=config.default(BIG, SMALL)))
        instance = (await wait_for_end(log, engine.states, InstanceKey("", "job"), 3600)).instance
        elapsed_s = time.perf_counter() - begin
    await log.aclose()
    assert find_files(instance.final_result) == find_files(job.in_full), instance.error
    return elapsed_s, instance.usage.cost_usd


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=float, default=100.0)
    parser.add_argument("--lines", type=int, default=150)
    arguments = parser.parse_args()
    job = Job.of(arguments.lines)
    ways = {
        "in waves, in full": (job.in_full, Waves()),
        "in full": (job.in_full, Full()),
        "by reference": (job.by_reference, Full()),
    }
    print(f"plan {tokens(job.plan)} tokens, files {sum(map(tokens, job.outputs.values()))} tokens")
    print(f"{'':20}{'synthesis, tokens':>20}{'US dollars':>12}{'seconds':>10}{'of waves':>10}")
    first_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (synthesis, profile)) in enumerate(ways.items()):
            model = Model(job, synthesis, profile, arguments.speed)
            elapsed_s, cost_usd = await run(job, model, Path(folder) / f"{number}.db")
            seconds = elapsed_s * arguments.speed
            first_s = first_s or seconds
            share = seconds / first_s
            print(f"{name:20}{model.synthesis_tokens:20}{cost_usd:12.3f}{seconds:10.1f}{share:10.2f}")


if __name__ == "__main__":
    asyncio.run(main())
