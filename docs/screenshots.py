"""Make the screenshots in this folder again: `make screenshots`.

The instances are staged (tests/support/staged_service.py) behind real Envoy, in real Chromium, so that each
picture shows the same moment whenever it is made.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "tests"))

from playwright.async_api import Browser  # noqa: E402  the path comes first
from support.browser import DESKTOP, PHONE, chromium  # noqa: E402
from support.staged_service import StagedService, Step, staged  # noqa: E402

from orchestrator.v1.event_pb2 import (  # noqa: E402
    InstanceCompleted,
    InstanceCreated,
    InstanceErrored,
    PlanCompleted,
    PlanningStarted,
    SubtaskCompleted,
    SubtaskFailed,
    SubtaskPlanned,
    SubtaskStarted,
    SynthesisCompleted,
    SynthesisStarted,
)
from orchestrator.v1.instance_pb2 import Budget, Failure, InstanceConfig, Subtask, Usage, Worker  # noqa: E402
from orchestrator.v1.orchestrator_pb2 import OutputDelta  # noqa: E402

BIG, SMALL = "openai/gpt-5", "openai/gpt-5-mini"
WORKERS = [
    Worker(name="coder", use="writes and changes code", model="openai/gpt-5-codex"),
    Worker(name="tester", use="writes tests"),
]
SUMMARY = "TypeScript 5 on Node 22, Express 5, Vitest. Types live in src/types.ts; the store is an interface."
PLAN = [
    Subtask(
        id="types",
        title="Types and validation of a todo",
        instructions="Write src/types.ts: the Todo type, its zod schemas for create and update, its errors.",
        worker="coder",
    ),
    Subtask(
        id="store",
        title="Store interface, in memory and SQLite",
        instructions="Write src/store.ts: the Store interface and both implementations, with migrations.",
        depends_on=["types"],
    ),
    Subtask(
        id="routes",
        title="HTTP routes for create, read, update and delete",
        instructions="Write src/routes.ts: an Express router over a Store, with paging and errors as JSON.",
        depends_on=["types"],
    ),
    Subtask(
        id="docker", title="Dockerfile, compose file and CI", instructions="Write a multi-stage Dockerfile."
    ),
    Subtask(
        id="tests",
        title="Tests of routes and stores",
        instructions="Write Vitest suites: a contract that both stores pass, and the routes by supertest.",
        depends_on=["store", "routes"],
    ),
]
RESULT = """# A todo API in TypeScript

Four files and a test suite. **Start** it with `npm run dev`; it listens on port 3000.

## The store

Both implementations pass one contract suite, so they can be swapped by a setting:

```ts
export interface Store {
  list(page: Page): Promise<Todo[]>;
  get(id: string): Promise<Todo | undefined>;
  put(todo: Todo): Promise<void>;
  remove(id: string): Promise<boolean>;
}
```

| route | does | answers |
|---|---|---|
| `POST /todos` | creates one | 201 with a `Location` |
| `GET /todos` | pages through all | 200 |
| `PATCH /todos/:id` | changes one | 200, or 409 when it changed meanwhile |

1. `npm install`
2. `docker compose up`
"""


def used(tokens_in: int, tokens_out: int, cost: float) -> Usage:
    return Usage(input_tokens=tokens_in, output_tokens=tokens_out, model_calls=1, cost_usd=cost)


def creation_step(prompt: str, **config: Any) -> Step:
    return 0, InstanceCreated(
        prompt=prompt, config=InstanceConfig(big_model=BIG, small_model=SMALL, **config)
    )


def started(at: float, subtask_id: str, attempt: int = 1) -> Step:
    return at, SubtaskStarted(subtask_id=subtask_id, attempt=attempt, model=SMALL)


def done(at: float, subtask_id: str, attempt: int = 1) -> Step:
    output = f"The files of **{subtask_id}**, as planned."
    return at, SubtaskCompleted(
        subtask_id=subtask_id, attempt=attempt, model=SMALL, output=output, usage=used(1310, 2250, 0.0048)
    )


def planned() -> list[Step]:
    return [
        (0.3, PlanningStarted(attempt=1, model=BIG)),
        *[(4 + at, SubtaskPlanned(attempt=1, subtask=part)) for at, part in enumerate(PLAN)],
        (9.4, PlanCompleted(attempt=1, model=BIG, summary=SUMMARY, usage=used(940, 1180, 0.0131))),
    ]


def completed_steps() -> list[Step]:
    limited = SubtaskFailed(
        subtask_id="docker",
        attempt=1,
        model=SMALL,
        error=Failure(reason="RATE_LIMITED", message="the endpoint answers 429: it asks to wait 6 s"),
    )
    limited.retry_time.GetCurrentTime()  # that there is one is what counts
    return [
        *[started(9.5, each) for each in ("types", "docker")],
        (13.1, limited),
        done(17.2, "types"),
        *[started(17.3, each) for each in ("store", "routes")],
        started(19.2, "docker", 2),
        done(29.8, "routes"),
    ]


PROMPT = "Build a TypeScript REST API for a todo list, with tests and a Dockerfile"
STORE = """import Database from 'better-sqlite3';
import type { Page, Store, Todo } from './store';

export class SqliteStore implements Store {
  constructor(private readonly db: Database) {}

  async list(page: Page): Promise<Todo[]> {
    return this.db.prepare('SELECT * FROM todos"""
DOCKERFILE = "FROM node:22-slim AS build\nWORKDIR /app\nCOPY package*.json ./\nRUN npm ci"
SPENT = Failure(
    reason="BUDGET_EXCEEDED",
    message="the budget of 0.05 US $ is spent: retry with a higher config.budget.max_cost_usd",
)


async def stage(service: StagedService) -> None:
    """Put instances on in several states, the newest last."""
    finished: list[Step] = [
        *[done(31, "docker", 2), done(36.5, "store"), started(36.6, "tests"), done(51, "tests")],
        (51.1, SynthesisStarted(attempt=1, model=BIG)),
        (66.4, SynthesisCompleted(attempt=1, model=BIG, final_result=RESULT, usage=used(9800, 3100, 0.0432))),
        (66.5, InstanceCompleted()),
    ]
    overspent: list[Step] = [
        *[started(9.5, "types"), started(9.5, "docker"), done(14, "types"), done(21.6, "docker")],
        (21.7, InstanceErrored(error=SPENT)),
    ]
    counters = "Compare three ways to shard a counter, with code"
    budget = Budget(max_cost_usd=0.05)
    guide = "Write a migration guide from Express 4 to Express 5"
    await service.stage(
        "todo-api", [creation_step(PROMPT), *planned(), *completed_steps(), *finished], ago_s=4100
    )
    await service.stage(
        "counters", [creation_step(counters, budget=budget), *planned(), *overspent], ago_s=1500
    )
    await service.stage(
        "guide", [creation_step(guide, review_plan=True, workers=WORKERS), *planned()], ago_s=300
    )
    await service.stage("todo-api-again", [creation_step(PROMPT), *planned(), *completed_steps()], ago_s=37)
    await service.write(
        "todo-api-again",
        OutputDelta(subtask_id="store", attempt=1, text=STORE),
        OutputDelta(subtask_id="docker", attempt=2, text=DOCKERFILE),
    )


async def shoot(
    browser: Browser, address: str, name: str, *, scheme: str, of_result: bool = False, **device: Any
) -> None:
    """Take one picture of an instance, or of its result, once all of it is there."""
    page = await browser.new_page(color_scheme=scheme, reduced_motion="reduce", **device)
    await page.goto(address)
    await page.locator(".instance").wait_for()
    await page.locator(".item").first.wait_for(state="attached")
    await page.locator(".service").wait_for(state="attached")
    if of_result:
        await page.locator(".result .hljs-keyword").first.wait_for()
        await page.get_by_role("link", name="Result").click()
        await page.evaluate("document.activeElement.blur()")
    await page.screenshot(path=FOLDER / f"{name}.png")
    await page.close()


async def main() -> None:
    """Make all of them."""
    async with staged() as (service, address), chromium() as browser:
        await stage(service)
        at = f"{address}#/instances/"
        await shoot(browser, f"{at}todo-api-again", "page-running", scheme="light", **DESKTOP)
        await shoot(browser, f"{at}todo-api", "page-result", scheme="dark", of_result=True, **DESKTOP)
        await shoot(browser, f"{at}guide", "page-review", scheme="light", **DESKTOP)
        await shoot(browser, f"{at}counters", "page-phone", scheme="dark", **PHONE)


if __name__ == "__main__":
    asyncio.run(main())
