"""Answers longer than the token limit, with the service as a process: killed, watched, and on the page."""

from pathlib import Path

from playwright.async_api import Browser, expect
from support.endpoint import Answer, Call, Endpoint, completion, hang
from support.page import (
    assert_accessible,
    create_instance,
    expect_state,
    get_instance,
    lane,
    open_page,
    page_url,
)
from support.process import on_endpoint, process, run_command

from orchestrator.models.scripted import plan_text

LONG = "".join(f"Line {number} of an answer that takes long to write.\n" for number in range(60))
TEXTS = {"t1": LONG, "t2": "short", "planning": plan_text(2), "synthesis": "# All of it\n\n" + LONG.strip()}
PART = 800


class Cutting:
    """An endpoint's script: a model that is cut off after so many characters, and goes on where it was."""

    def __init__(self) -> None:
        self.held: set[tuple[str, int]] = set()
        """Calls that hang, by their work and how much of the text there is."""
        self.starts: list[tuple[str, int]] = []

    def __call__(self, call: Call) -> Answer:
        name = call.subtask_id or call.role
        so_far = [each["content"] for each in call.body["messages"] if each["role"] == "assistant"]
        start = len(so_far[0]) if so_far else 0
        assert TEXTS[name].startswith("".join(so_far))
        self.starts.append((name, start))
        if (name, start) in self.held:
            return hang
        rest = TEXTS[name][start:]
        return completion(rest[:PART], "length") if len(rest) > PART else completion(rest)

    def of(self, name: str) -> list[int]:
        return [start for called, start in self.starts if called == name]


async def test_killed_between_two_parts_nothing_that_was_recorded_is_paid_for_again(tmp_path: Path) -> None:
    script = Cutting()
    script.held = {("t1", PART), ("synthesis", 2 * PART)}
    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        await create_instance(service, "a")
        for held in sorted(script.held, reverse=True):
            async with endpoint.call_arrived:
                await endpoint.call_arrived.wait_for(lambda held=held: held in script.starts)
            await service.kill()
            script.held.remove(held)
            await service.start("up")
        assert "complete" in await run_command(service, "wait", "a")
        instance = await get_instance(service, "a")
    assert instance["finalResult"] == TEXTS["synthesis"]
    assert [subtask["output"] for subtask in instance["subtasks"]] == [LONG, "short"]
    for name, again in (("t1", PART), ("synthesis", 2 * PART)):
        starts = list(range(0, len(TEXTS[name]), PART))
        assert script.of(name) == sorted([*starts, again])


async def test_the_page_shows_a_partial_answer_and_the_parts_of_a_whole_one(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(Cutting(), subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a", config={"maxContinuations": 1, "toleratedFailures": 1})
        await page.goto(page_url(service, "a"))
        await expect_state(page, "Errored")
        result = page.get_by_role("region", name="Result, as far as it was written")
        await expect(result).to_contain_text("All of it")
        await lane(page, "Part 1").locator(".row").click()
        panel = lane(page, "Part 1").locator(".panel")
        await expect(panel).to_contain_text("The beginning of an answer that was cut off at the token limit")
        await expect(panel.locator(".output")).to_contain_text("Line 9 of an answer")
        await assert_accessible(page)
        await run_command(service, "retry", "a", "--max-continuations", "16")
        await expect_state(page, "Complete")
        await expect(page.get_by_role("region", name="Result", exact=True)).to_contain_text("Line 59 of")
        await expect(panel).not_to_contain_text("The beginning of an answer")
        events = await run_command(service, "events", "a")
        assert "goes on: part 1 reached the token limit" in events
