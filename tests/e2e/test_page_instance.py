"""One instance on the page: its prompt, result, code, events and usage, and its plan in review."""

import json
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect
from support.browser import DESKTOP, PHONE
from support.endpoint import Answer, Call, Endpoint
from support.page import (
    assert_accessible,
    assert_fits_phone,
    button,
    create_instance,
    expect_state,
    get_instance,
    lane,
    open_page,
    page_url,
)
from support.process import on_endpoint, process
from support.staged_service import StagedService, Step

from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1.instance_pb2 import InstanceConfig, Subtask, Usage

BIG, SMALL = "openai/big", "openai/small"
SENTENCE = (
    "Reconcile the orders of three shops with the ledger of the warehouse, and tell whoever is on duty; "
)
TITLE = ("a title that goes on for longer than any column is wide " * 4)[:199] + "!"
CODE = """# All of it

Some words.

```python title=app.py
def greet(name: str) -> None:
    print(f"hello {name}")  # {LONG}
```

```Dockerfile
FROM python:3.13
```

```nobody-knows
def x
```

```
def y
```
""".replace("{LONG}", "and on " * 60)


def finished(result: str, prompt: str = "Build it") -> list[Step]:
    config = InstanceConfig(big_model=BIG, small_model=SMALL)
    subtask = Subtask(id="t1", title=TITLE, instructions="Do it.")
    usage = Usage(input_tokens=12_000, output_tokens=345, model_calls=1, cost_usd=0.0123)
    return [
        (0, pb.InstanceCreated(prompt=prompt, config=config)),
        (1, pb.PlanningStarted(attempt=1, model=BIG)),
        (2, pb.SubtaskPlanned(attempt=1, subtask=subtask)),
        (3, pb.PlanCompleted(attempt=1, model=BIG)),
        (4, pb.SubtaskStarted(subtask_id="t1", attempt=1, model=SMALL)),
        (5, pb.SubtaskCompleted(subtask_id="t1", attempt=1, model=SMALL, output="One.", usage=usage)),
        (6, pb.SynthesisStarted(attempt=1, model=BIG)),
        (7, pb.SynthesisCompleted(attempt=1, model=BIG, final_result=result, usage=usage)),
        (8, pb.InstanceCompleted()),
    ]


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_a_truncated_prompt_and_a_truncated_title_can_be_read_in_full(
    device: dict[str, object], stage: tuple[StagedService, str], browser: Browser
) -> None:
    service, address = stage
    whole = SENTENCE * 50 + "\n\nAnd the last line."
    name = f"long-{len(device)}"
    await service.stage(name, finished("Done.", whole), ago_s=100)
    async with open_page(browser, **device) as page:
        await page.goto(f"{address}#/instances/{name}")
        await expect(page.locator("h1")).to_have_text(SENTENCE[:98] + " Reconcile the orders…")
        await page.get_by_text("The whole prompt").click()
        await expect(page.locator(".prompt .pre")).to_have_text(whole)
        title = page.locator("[data-lane=subtask-t1] .title")
        await title.click()
        await expect(title).to_have_text(TITLE)
        assert await title.evaluate(
            "it => it.scrollWidth <= it.clientWidth && it.scrollHeight <= it.clientHeight"
        )
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_prompt_that_fits_the_heading_is_not_repeated(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("short", finished("Done."), ago_s=100)
    await page.goto(f"{address}#/instances/short")
    await expect(page.locator("h1")).to_have_text("Build it")
    await expect(page.get_by_text("The whole prompt")).to_have_count(0)


async def test_the_result_is_one_link_away_and_is_copied_and_downloaded_unchanged(
    browser: Browser, tmp_path: Path
) -> None:
    def script(call: Call) -> Answer:
        return CODE if call.role == "synthesis" else None

    async with (
        Endpoint(script, subtasks=16) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await create_instance(service, "a")
        await page.goto(page_url(service, "a"))
        await expect_state(page, "Complete")
        await page.get_by_role("link", name="Skip to the content").focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text("Result ↓")
        await page.keyboard.press("Enter")
        await expect(page.locator(":focus")).to_have_text("Result")
        await expect(page.locator("#result-title")).to_be_in_viewport()
        assert page.url == page_url(service, "a")
        await button(page, "Copy Markdown the result as Markdown").click()
        assert await page.evaluate("navigator.clipboard.readText()") == CODE.strip()
        async with page.expect_download() as pending_download:
            await page.get_by_role("link", name="Download .md").click()
        download = await pending_download.value
        assert download.suggested_filename == "a.md"
        assert Path(await download.path()).read_text() == CODE.strip()


async def test_there_is_no_link_to_a_result_before_there_is_one(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("unfinished", finished("Done.")[:-3], ago_s=10)
    await page.goto(f"{address}#/instances/unfinished")
    await expect_state(page, "Running")
    link = page.locator(".actions").get_by_role("link", name="Result")
    await expect(link).to_have_count(0)
    await service.record("unfinished", *(payload for _, payload in finished("Done.")[-3:]))
    await expect(link).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_code_has_colours_and_is_as_wide_as_its_card(
    scheme: str, stage: tuple[StagedService, str], browser: Browser
) -> None:
    service, address = stage
    name = f"code-{scheme}"
    await service.stage(name, finished(CODE), ago_s=100)
    async with open_page(browser, color_scheme=scheme, viewport={"width": 1800, "height": 1000}) as page:
        await page.goto(f"{address}#/instances/{name}")
        code = page.locator(".result pre code")
        await expect(code.nth(0).locator(".hljs-keyword").first).to_have_text("def")
        await expect(code.nth(1).locator(".hljs-keyword")).to_have_text("FROM")
        await expect(code.nth(2).locator("span")).to_have_count(0)
        await expect(code.nth(3).locator("span")).to_have_count(0)
        assert await code.nth(0).inner_text() == CODE.split("```")[1].partition("\n")[2]
        colours = await code.nth(0).evaluate(
            "it => new Set([...it.querySelectorAll('span')].map((each) => getComputedStyle(each).color)).size"
        )
        assert colours >= 3
        card = await page.locator(".result").bounding_box()
        frame = await page.locator(".result .code").nth(0).bounding_box()
        assert card is not None
        assert frame is not None
        assert frame["width"] > card["width"] - 60
        await assert_accessible(page)


async def test_on_a_phone_long_code_scrolls_within_its_card(
    stage: tuple[StagedService, str], browser: Browser
) -> None:
    service, address = stage
    await service.stage("narrow", finished(CODE), ago_s=100)
    async with open_page(browser, **PHONE) as page:
        await page.goto(f"{address}#/instances/narrow")
        scrollable = page.locator(".result .code .scrollable").nth(0)
        assert await scrollable.evaluate("it => it.scrollWidth > it.clientWidth && it.clientWidth > 300")
        await assert_fits_phone(page)


async def test_an_event_expands_to_its_whole_payload(stage: tuple[StagedService, str], page: Page) -> None:
    service, address = stage
    await service.stage("events", finished("Done."), ago_s=100)
    await page.goto(f"{address}#/instances/events")
    await page.locator(".log > summary").click()
    entries = page.locator(".log li")
    await expect(entries).to_have_count(9)
    await entries.nth(5).locator("summary").click()
    payload = json.loads(await entries.nth(5).locator("pre").inner_text())
    assert payload["output"] == "One."
    assert payload["usage"] == {
        "inputTokens": "12000",
        "outputTokens": "345",
        "modelCalls": 1,
        "costUsd": 0.0123,
    }
    await entries.nth(0).locator("summary").press("Enter")
    assert json.loads(await entries.nth(0).locator("pre").inner_text())["prompt"] == "Build it"
    await assert_accessible(page)
    await entries.nth(0).locator("summary").press("Enter")
    await expect(entries.nth(0).locator("pre")).to_have_count(0)


async def test_usage_is_shown_in_total_and_by_input_and_output(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("used", finished("Done."), ago_s=100)
    await page.goto(f"{address}#/instances/used")
    facts = page.locator(".facts")
    await expect(facts).to_contain_text("24,690 tokens")
    await expect(facts).to_contain_text("24,000 in, 690 out")
    await expect(facts).to_contain_text("$0.0246")
    await expect(page.locator("[data-lane=subtask-t1] .totals")).to_contain_text("12,345 tok")
    await expect(page.locator('.item[href$="/used"]')).to_contain_text("24,690 tok")


WORKERS = [
    {"name": "coder", "use": "writes code", "model": "openai/coding"},
    {"name": "writer", "use": "writes prose"},
]


async def test_workers_of_the_catalogue_are_chosen_in_a_review(browser: Browser, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.role != "planning":
            return None
        each = [(f"t{n}", worker) for n, worker in enumerate(["coder", "", "gone"], 1)]
        plan = [{"id": id_, "title": id_, "instructions": "Do it.", "worker": worker} for id_, worker in each]
        return json.dumps({"summary": "All of it.", "subtasks": plan})

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a", config={"reviewPlan": True, "workers": WORKERS})
        await page.goto(page_url(service, "a"))
        fields = page.get_by_label("Worker")
        await expect(fields).to_have_count(3)
        assert [await field.input_value() for field in await fields.all()] == ["coder", "", "gone"]
        assert await fields.nth(0).locator("option").all_inner_texts() == [
            "The small model",
            "coder (openai/coding)",
            "writer",
        ]
        await expect(page.locator(".draft").nth(0)).to_contain_text("writes code")
        await expect(page.locator(".draft").nth(2)).to_contain_text("gone: not in the catalogue")
        await assert_accessible(page)
        await fields.nth(0).select_option("writer")
        await fields.nth(1).select_option("coder")
        await fields.nth(2).select_option("The small model")
        await button(page, "Approve the edited plan").click()
        await expect_state(page, "Complete")
        subtasks = (await get_instance(service, "a"))["subtasks"]
    assert [subtask["worker"] for subtask in subtasks] == ["writer", "coder", ""]
    assert [subtask["model"] for subtask in subtasks] == ["openai/small", "openai/coding", "openai/small"]


async def test_workers_of_the_services_own_catalogue_are_chosen_in_a_review(
    browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "orchestrator.toml").write_text('[[workers]]\nname = "coder"\nuse = "writes code"\n')
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a", config={"reviewPlan": True})
        await page.goto(page_url(service, "a"))
        field = page.get_by_label("Worker")
        await expect(field.locator("option")).to_have_text(["The small model", "coder"])
        await field.select_option("coder")
        await button(page, "Approve the edited plan").click()
        await expect_state(page, "Complete")
        subtasks = (await get_instance(service, "a"))["subtasks"]
    assert [subtask["worker"] for subtask in subtasks] == ["coder"]


async def test_an_instance_with_a_plan_of_its_own_is_restarted_without_it(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await create_instance(service, "a", config={"subtasks": [{"id": "mine", "instructions": "Do it."}]})
        await page.goto(page_url(service, "a"))
        await expect_state(page, "Complete")
        await button(page, "Restart…").click()
        await page.get_by_label("Let the big model plan").check()
        await page.get_by_label("Stop at tokens").fill("100000")
        await button(page, "Restart").click()
        await expect(page.locator(".timeline")).to_contain_text("t2")
        await expect_state(page, "Complete")
        instance = await get_instance(service, "a")
    assert [subtask["id"] for subtask in instance["subtasks"]] == ["t1", "t2"]
    assert instance["config"]["budget"] == {"maxTokens": "100000"}


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_a_long_plan_can_be_approved_at_every_scroll_position(
    device: dict[str, object], browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(subtasks=16) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser, **device) as page,
    ):
        await create_instance(service, "a", config={"reviewPlan": True})
        await page.goto(page_url(service, "a"))
        approve = button(page, "Approve")
        await expect(approve).to_be_in_viewport(ratio=1)
        for number in (0, 7, 15):
            title = page.locator(".draft").nth(number).get_by_label("Title")
            await title.focus()
            await expect(title).to_be_in_viewport(ratio=1)
            await expect(approve).to_be_in_viewport(ratio=1)
            is_covered = await title.evaluate(
                "it => { const { x, y } = it.getBoundingClientRect();"
                " return !it.contains(document.elementFromPoint(x + 5, y + 5)); }"
            )
            assert not is_covered
        await approve.click()
        await expect_state(page, "Complete")


async def test_a_title_in_review_has_no_line_breaks_and_is_shown_whole(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser, **PHONE) as page,
    ):
        await create_instance(service, "a", config={"reviewPlan": True})
        await page.goto(page_url(service, "a"))
        title = page.get_by_label("Title", exact=True)
        await title.fill(TITLE[:150] + "\nand more")
        await title.press("Enter")
        await expect(title).to_have_value(TITLE[:150] + " and more")
        assert await title.evaluate("it => it.scrollHeight <= it.clientHeight + 1")
        await button(page, "Approve the edited plan").click()
        await expect_state(page, "Complete")
        await expect(lane(page, TITLE[:150].strip() + ".*and more")).to_have_count(1)
