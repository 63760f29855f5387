"""The page in real Chromium, before a real service with a scripted endpoint: what a person does and sees."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, expect
from support import streams
from support.browser import DESKTOP, PHONE
from support.endpoint import Answer, Call, Endpoint, completion, failing, hang
from support.page import (
    assert_accessible,
    assert_fits,
    button,
    created,
    got,
    lane,
    open_page,
    shows,
    ui,
)
from support.process import on_endpoint, process

from orchestrator.models.scripted import plan_text

WIDE = "word" * 60 + " \n\n```\n" + "code " * 80 + "\n```\n\n|" + "cell|" * 30 + "\n|" + "-|" * 30 + "\n"


class Gate:
    """Workers that answer only once they are let."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    def __call__(self, call: Call) -> Answer:
        return self._wait if call.role == "work" else None

    async def _wait(self, call: Call) -> web.StreamResponse:
        await self.opened.wait()
        return web.json_response(completion(f"The output of {call.subtask_id}."))


class Dictation:
    """Workers that stream each piece of text once it is put into `pieces`, and end with an empty one."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, call: Call) -> Answer:
        return self._say if call.role == "work" else None

    async def _say(self, call: Call) -> web.StreamResponse:
        assert call.body["stream"]
        response = await streams.begin(call.request)
        while piece := await self.pieces.get():
            chunk = {"choices": [{"index": 0, "delta": {"content": piece}}]}
            await response.write(streams.encoded(chunk))
        for event in streams.of_completion(completion(""), call.body):
            await response.write(streams.encoded(event))
        return response


async def offered(page: Page) -> list[str]:
    return await page.locator(".actions > button").all_inner_texts()


async def test_a_prompt_is_typed_and_watched_to_its_end(browser: Browser, tmp_path: Path) -> None:
    gate = Gate()
    async with (
        Endpoint(gate) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.goto(f"http://{service.rest_address}/")
        assert page.url == ui(service)
        await page.get_by_label("Prompt").fill("Write a haiku\nabout logs")
        await page.get_by_label("Prompt").press("Control+Enter")
        await shows(page, "Running")
        await expect(page.locator("h1")).to_have_text("Write a haiku")
        await expect(page).to_have_title("Running: Write a haiku")
        await expect(page.locator(".lane")).to_have_count(5)
        await expect(page.locator(".lane.running")).to_have_count(3)
        await expect(page.locator(".item .tone")).to_have_text("Running")
        gate.opened.set()
        await shows(page, "Complete")
        await expect(page.locator(".result h3")).to_have_text("The result")
        await expect(page.locator(".item .tone")).to_have_text("Complete")
        assert await offered(page) == ["Restart…", "Fork…", "Delete…"]
        facts = await page.locator(".facts").inner_text()
        assert "3 of 3" in facts
        assert "openai/big" in facts
        await button(page, "Copy Markdown the result as Markdown").click()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied == "# The result\n\nAll parts, put together."
        await lane(page, "Part 2").locator(".row").click()
        await expect(page.locator(".panel .markdown")).to_have_text("The output of t2.")
        await page.reload()
        await shows(page, "Complete")


async def test_killed_amid_a_run_the_page_resumes_without_a_gap(browser: Browser, tmp_path: Path) -> None:
    gate = Gate()
    async with (
        Endpoint(gate) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a")
        await page.goto(ui(service, "a"))
        await expect(page.locator(".lane.running")).to_have_count(3)
        await expect(page.locator(".connection")).to_have_text("Live")
        await service.kill()
        await expect(page.locator(".connection")).to_have_text("Reconnecting…")
        await shows(page, "Running")
        gate.opened.set()
        await service.start("up")
        await shows(page, "Complete")
        await expect(page.locator(".connection")).to_have_text("Live")
        last = int((await got(service, "a"))["lastSequence"])
        shown = await page.locator(".log li").evaluate_all("items => items.map(item => item.value)")
        assert shown == list(range(1, last + 1))
        await lane(page, "Part 1").locator(".row").click()
        await expect(lane(page, "Part 1").locator(".attempts")).to_contain_text("INTERRUPTED")
        await expect(page.locator(".item .tone")).to_have_text("Complete")


async def test_a_finished_instance_that_goes_on_is_followed_again(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a")
        await page.goto(ui(service, "a"))
        await shows(page, "Complete")
        async with httpx.AsyncClient(trust_env=False) as elsewhere:
            await elsewhere.post(f"http://{service.rest_address}/a:restart", json={})
        await expect(page.locator(".log li", has_text="instance completed")).to_have_count(2)
        await shows(page, "Complete")
        await expect(page.locator(".bar")).to_have_count(5)
        await expect(page.locator(".connection")).to_have_text("Live")


async def test_a_subtasks_text_grows_while_its_call_is_open(browser: Browser, tmp_path: Path) -> None:
    dictation = Dictation()
    async with (
        Endpoint(dictation, subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a", config={"reviewPlan": True})
        await page.goto(ui(service, "a"))
        await button(page, "Approve").click()
        await expect(page.locator(".lane.running")).to_have_count(1)
        written = page.locator(".live-text")
        await lane(page, "Part 1").locator(".row").click()
        await dictation.pieces.put("The first ")
        await expect(written).to_have_text("The first ")
        await dictation.pieces.put("words, then more.")
        await expect(written).to_have_text("The first words, then more.")
        await page.reload()
        await lane(page, "Part 1").locator(".row").click()
        await expect(written).to_have_text("The first words, then more.")
        await dictation.pieces.put(" And the last.")
        await expect(written).to_have_text("The first words, then more. And the last.")
        assert endpoint.open_calls == 1
        await dictation.pieces.put("")
        await shows(page, "Complete")
        await expect(written).to_have_count(0)
        await expect(page.locator(".panel .markdown")).to_have_text(
            "The first words, then more. And the last."
        )


async def test_the_list_shows_that_a_plan_is_to_be_reviewed_that_was_being_made_when_it_was_opened(
    browser: Browser, tmp_path: Path
) -> None:
    is_planned = asyncio.Event()

    async def plan(_: Call) -> web.StreamResponse:
        await is_planned.wait()
        return web.json_response(completion(plan_text(1)))

    async with (
        Endpoint(lambda _: plan) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a", config={"reviewPlan": True})
        await endpoint.wait_for_calls(1)
        await page.goto(ui(service))
        await expect(page.locator(".item")).to_contain_text("Running")
        await expect(page.locator(".connection")).to_have_text("Live")
        is_planned.set()
        await expect(page.locator(".item")).to_contain_text("Plan to review")


async def test_text_is_seen_by_whoever_comes_in_the_midst_of_a_call(browser: Browser, tmp_path: Path) -> None:
    dictation = Dictation()
    async with (
        Endpoint(dictation, subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a")
        await endpoint.wait_for_calls(2)
        await dictation.pieces.put("LiveText before anybody looked")
        await page.goto(ui(service, "a"))
        await lane(page, "Part 1").locator(".row").click()
        await expect(page.locator(".live-text")).to_have_text("LiveText before anybody looked")
        await dictation.pieces.put(", and after.")
        await expect(page.locator(".live-text")).to_have_text("LiveText before anybody looked, and after.")
        assert endpoint.open_calls == 1
        await dictation.pieces.put("")
        await shows(page, "Complete")


VECTORS = [
    "<script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "<svg onload='window.broken = 1'><script>window.broken = 1</script></svg>",
    "<iframe srcdoc='<script>parent.broken = 1</script>'></iframe>",
    "<style>main { display: none }</style><link rel=stylesheet href=http://127.0.0.1:9/a.css>",
    "<a href='javascript:window.broken = 1'>html link</a>",
    "[link](javascript:window.broken=1) [upper](JaVaScRiPt:window.broken=1)",
    "[data](data:text/html,<script>parent.broken=1</script>) [blob](blob:x) [file](file:///etc/passwd)",
    "[entity](&#106;avascript:window.broken=1) <javascript:window.broken=1>",
    '![picture](http://127.0.0.1:9/tracker.png) ![x](x" onerror="window.broken=1)',
    '```js" onmouseover="window.broken=1\nalert(1)\n```',
    "<form action=http://127.0.0.1:9/><button id=body name=querySelector>x</button></form>",
    "<details open ontoggle='window.broken = 1'>x</details>",
    "<math><mtext><table><mglyph><style><img src onerror=window.broken=1></style></table></mtext></math>",
    "<base href=http://127.0.0.1:9/><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "[home](/) [delete](//127.0.0.1:9/) [here](#/new)",
]
HOSTILE = "\n\n".join(VECTORS)


async def test_hostile_output_does_nothing(browser: Browser, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.role != "planning":
            return HOSTILE
        title = VECTORS[1][:190]
        subtask = {
            "id": "t1",
            "title": title,
            "instructions": HOSTILE,
            "depends_on": [],
            "worker": title[:90],
        }
        return json.dumps({"summary": HOSTILE, "subtasks": [subtask]})

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        await created(service, "a", prompt=HOSTILE, labels={"x": VECTORS[0]})
        await page.goto(ui(service, "a"))
        await shows(page, "Complete")
        for row in await page.locator(".row").all():
            await row.click()
            await expect(row).to_have_attribute("aria-expanded", "true")
            await assert_tame(page)
        await expect(page.locator(".result .markdown")).to_contain_text("<script>window.broken = 1</script>")
        assert await page.evaluate("window.broken") is None
        assert dialogs == []
        home = f"http://{service.rest_address}/"
        assert [url for url in asked if not url.startswith(home)] == []


async def assert_tame(page: Page) -> None:
    """Nothing in the document could run, load or lead into the service."""
    forbidden = "main :is(script, iframe, style, link, object, embed, img, base, meta, math, [style*=url])"
    assert await page.locator(forbidden).count() == 0
    attributes = await page.locator(".markdown *").evaluate_all(
        "all => [...new Set(all.flatMap(each => each.getAttributeNames()))]"
    )
    assert not [
        name for name in attributes if name.startswith("on") or name in {"id", "name", "src", "style"}
    ]
    links = await page.locator(".markdown a[href]").evaluate_all(
        "all => all.map(a => [a.href, a.rel, a.target])"
    )
    assert all(href.startswith(("http:", "https:", "mailto:")) for href, _, _ in links)
    assert all("noopener" in rel and target == "_blank" for _, rel, target in links)
    assert not [href for href, _, _ in links if "/-/ui" in href]


async def test_the_policy_would_stop_what_the_sanitiser_let_through(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.goto(ui(service))
        blocked = """async () => {
            const violated = new Promise((done) => document.addEventListener(
                'securitypolicyviolation', (violation) => done(violation.effectiveDirective)));
            try { %s } catch (error) { return error.name; }
            return violated;
        }"""
        assert await page.evaluate(blocked % "document.body.innerHTML += '<b>x</b>'") == "TypeError"
        assert await page.evaluate(blocked % "document.createElement('script').text = '1'") == "TypeError"
        picture = "new Image().src = 'http://127.0.0.1:9/tracker.png'"
        assert await page.evaluate(blocked % picture) == "img-src"
        style = "const s = document.createElement('style'); s.textContent = 'a{}'; document.body.append(s)"
        assert await page.evaluate(blocked % style) == "style-src-elem"
        frame = "const f = document.createElement('iframe'); f.src = '/'; document.body.append(f)"
        assert await page.evaluate(blocked % frame) == "frame-src"


async def test_a_plan_is_edited_and_approved(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.goto(ui(service))
        await page.get_by_label("Prompt").fill("Build it")
        await page.get_by_text("Options").click()
        await page.get_by_label("Small model: works on subtasks").fill("openai/other")
        await page.get_by_label("Let me review the plan").check()
        await button(page, "Start").click()
        await shows(page, "Plan to review")
        assert endpoint.count("work") == 0
        first = page.locator(".draft").nth(0)
        await first.get_by_label("Title").fill("A better first part")
        await first.get_by_label("Instructions").fill("Do it well.")
        await button(page, "Remove Part 2").click()
        await page.locator(".draft").nth(1).get_by_label("t1").check()
        await button(page, "Add a subtask").click()
        await expect(page.locator(".draft")).to_have_count(3)
        await page.locator(".draft").nth(2).get_by_label("Instructions").fill("And this.")
        await button(page, "Approve the edited plan").click()
        await shows(page, "Complete")
        instance = await got(service, page.url.rpartition("/")[2])
    subtasks = {subtask["id"]: subtask for subtask in instance["subtasks"]}
    assert list(subtasks) == ["t1", "t3", "t4"]
    assert subtasks["t1"]["title"] == "A better first part"
    assert subtasks["t1"]["instructions"] == "Do it well."
    assert subtasks["t3"]["dependsOn"] == ["t1"]
    assert instance["config"]["smallModel"] == "openai/other"


async def test_a_plan_that_cannot_be_used_says_why_and_a_rejected_one_is_made_again(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a", config={"reviewPlan": True})
        await page.goto(ui(service, "a"))
        await page.locator(".draft").nth(0).get_by_label("t2").check()
        await page.locator(".draft").nth(1).get_by_label("t1").check()
        await button(page, "Approve the edited plan").click()
        await expect(page.get_by_role("alert")).to_contain_text("in a cycle")
        await page.get_by_label("What should the next plan do better").fill("fewer words, please")
        await button(page, "Reject and plan again").click()
        await endpoint.wait_for_calls(2)
        await expect(page.locator(".draft")).to_have_count(2)
        await button(page, "Approve").click()
        await shows(page, "Complete")
        assert "fewer words, please" in endpoint.calls[1].told


async def test_an_instance_is_steered_where_its_state_allows(browser: Browser, tmp_path: Path) -> None:
    gate = Gate()
    async with (
        Endpoint(gate, chained=True) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a")
        await page.goto(ui(service, "a"))
        await expect(page.locator(".lane.running")).to_have_count(1)
        assert await offered(page) == ["Pause", "Terminate", "Fork…"]
        await button(page, "Pause").click()
        await shows(page, "Pausing")
        gate.opened.set()
        await shows(page, "Paused")
        assert await offered(page) == ["Resume", "Terminate", "Fork…"]
        gate.opened.clear()
        await button(page, "Resume").click()
        await shows(page, "Running")
        await button(page, "Terminate").click()
        await shows(page, "Terminated")
        assert await offered(page) == ["Retry", "Retry with changes…", "Restart…", "Fork…", "Delete…"]
        gate.opened.set()
        await button(page, "Retry").click()
        await shows(page, "Complete")
        calls = endpoint.count("work", "t1")
        await button(page, "Restart…").click()
        await button(page, "Restart").click()
        await shows(page, "Complete")
        await expect(page.locator(".bar")).to_have_count(5)
        assert endpoint.count("work", "t1") == calls + 1


async def test_an_error_says_its_mend_and_a_retry_runs_only_what_failed(
    browser: Browser, tmp_path: Path
) -> None:
    def script(call: Call) -> Answer:
        return failing(404, "no such model") if call.body["model"] == "small" else None

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await created(service, "a")
        await page.goto(ui(service, "a"))
        await shows(page, "Errored")
        error = (await got(service, "a"))["error"]
        await expect(page.locator(".error")).to_contain_text(error["message"])
        await expect(page.locator(".error h2")).to_have_text(error["reason"])
        await button(page, "Retry with changes…").click()
        await page.get_by_role("dialog").get_by_label("Small model: works on subtasks").fill("openai/other")
        await page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        await shows(page, "Complete")
        assert endpoint.count("planning") == 1
        await expect(page.locator(".error")).to_have_count(0)


async def test_what_the_service_refuses_is_told_and_nothing_is_lost(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint(lambda _: hang) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.goto(ui(service))
        await page.get_by_label("Prompt").fill("Build it")
        await page.get_by_text("Options").click()
        await page.get_by_label("Big model: plans and synthesises").fill("nobody/knows")
        await button(page, "Start").click()
        await expect(page.get_by_role("alert")).to_contain_text("nobody")
        await expect(page.get_by_label("Prompt")).to_have_value("Build it")
        await page.get_by_label("Big model: plans and synthesises").fill("")
        await service.kill()
        await button(page, "Start").click()
        await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        await service.start("up")
        await button(page, "Start").click()
        await shows(page, "Running")
        await page.goto(ui(service, "nobody"))
        await expect(page.locator("h1")).to_have_text("No such instance")


async def test_all_of_it_works_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    gate = Gate()
    async with (
        Endpoint(gate) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        focused = page.locator(":focus")
        await page.goto(ui(service))
        await page.keyboard.press("Tab")
        await expect(focused).to_have_text("Skip to the content")
        await page.keyboard.press("Enter")
        await expect(focused).to_have_text("What is to be done?")
        await page.keyboard.press("Tab")
        await page.keyboard.type("Build it")
        await page.keyboard.press("Tab")
        await expect(focused).to_have_text("Options")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await shows(page, "Running")
        gate.opened.set()
        await shows(page, "Complete")
        await expect(page.get_by_role("status").filter(has_text="Complete.")).to_be_attached()
        await lane(page, "Part 1").locator(".row").focus()
        await page.keyboard.press("Enter")
        await expect(focused).to_have_attribute("aria-expanded", "true")
        await expect(page.locator(".panel .markdown")).to_be_visible()
        await button(page, "Restart…").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await page.evaluate("document.activeElement.closest('dialog') !== null")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(focused).to_have_text("Restart…")


async def test_at_phone_width_nothing_scrolls_sideways(browser: Browser, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.role != "planning":
            return WIDE
        subtasks = [
            {"id": f"t{n}", "title": "t" * 190, "instructions": WIDE, "depends_on": [], "worker": ""}
            for n in range(1, 9)
        ]
        return json.dumps({"summary": WIDE, "subtasks": subtasks})

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser, **PHONE) as page,
    ):
        await created(service, "done", prompt=WIDE)
        await created(service, "review", prompt=WIDE, config={"reviewPlan": True})
        await page.goto(ui(service))
        await page.locator(".item", has_text="Plan to review").tap()
        await shows(page, "Plan to review")
        await expect(page.locator(":focus")).to_have_id("instance-title")
        await assert_fits(page)
        await page.get_by_role("link", name="All instances").tap()
        await expect(page.locator(".item")).to_have_count(2)
        await assert_fits(page)
        await page.get_by_role("link", name="New").tap()
        await expect(page.locator(":focus")).to_have_text("What is to be done?")
        await page.get_by_text("Options").tap()
        await assert_fits(page)
        await page.goto(ui(service, "done"))
        await shows(page, "Complete")
        await page.locator(".row").nth(2).tap()
        await expect(page.locator(".panel .markdown")).to_be_visible()
        await assert_fits(page)
        await button(page, "Fork…").tap()
        await assert_fits(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(scheme: str, browser: Browser, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if "broken" in call.told:
            return failing(401, "no")
        return hang if "endless" in call.told and call.role == "work" else None

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser, color_scheme=scheme, **DESKTOP) as page,
    ):
        await page.goto(ui(service))
        await page.get_by_text("Options").click()
        await assert_accessible(page)
        await created(service, "done", labels={"team": "a"})
        await page.goto(ui(service, "done"))
        await shows(page, "Complete")
        await lane(page, "Part 1").locator(".row").click()
        for summary in await page.locator("main summary").all():
            await summary.click()
        await assert_accessible(page)
        await button(page, "Fork…").click()
        await assert_accessible(page)
        await created(service, "review", config={"reviewPlan": True})
        await page.goto(ui(service, "review"))
        await shows(page, "Plan to review")
        await assert_accessible(page)
        await created(service, "failed", prompt="broken")
        await page.goto(ui(service, "failed"))
        await shows(page, "Errored")
        await lane(page, "Planning").locator(".row").click()
        await assert_accessible(page)
        await created(service, "running", prompt="endless")
        await page.goto(ui(service, "running"))
        await expect(page.locator(".lane.running")).to_have_count(3)
        await assert_accessible(page)
