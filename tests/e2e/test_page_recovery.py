"""No message outlives its cause: an outage, a refusal, a full disk, a wrong field, an attempt that failed."""

import asyncio
import json
from pathlib import Path

from playwright.async_api import Browser, Page, Route, expect
from support.endpoint import Endpoint, hang
from support.page import button, create_instance, expect_state, open_page, page_url
from support.process import on_endpoint, process
from support.staged_service import PROMPT, SMALL, StagedService, rate_limited, started

from orchestrator.v1 import event_pb2 as pb

UNREACHABLE = "cannot be reached"


async def test_messages_about_an_outage_are_removed_once_the_service_is_back(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint(lambda _: hang) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
        open_page(browser) as creating,
        open_page(browser) as forking,
    ):
        await create_instance(service, "a")
        await page.goto(page_url(service, "a"))
        await expect_state(page, "Running")
        await creating.goto(page_url(service))
        await creating.get_by_label("Prompt").fill("Build another")
        await forking.goto(page_url(service, "a"))
        await button(forking, "Fork…").click()
        await forking.get_by_label("Id of the new instance").fill("b")
        for each in (page, creating, forking):
            await expect(each.locator(".connection")).to_have_text("Live")
        await service.kill()
        await button(page, "Pause").click()
        await expect(page.locator(".actions").get_by_role("alert")).to_contain_text(UNREACHABLE)
        await page.get_by_role("link", name="Errored", exact=True).click()
        await expect(page.locator(".sidebar").get_by_role("alert")).to_contain_text(UNREACHABLE)
        await button(creating, "Start").click()
        await expect(creating.get_by_role("alert")).to_contain_text(UNREACHABLE)
        await button(forking, "Fork").click()
        await expect(forking.get_by_role("dialog").get_by_role("alert")).to_contain_text(UNREACHABLE)
        await service.start("up")
        for each in (page, creating, forking):
            await expect(each.locator(".connection")).to_have_text("Live")
            await expect(each.get_by_role("alert")).to_have_count(0)
        await expect(page.locator(".count")).to_have_text("Nothing is errored.")
        await expect(creating.get_by_label("Prompt")).to_have_value("Build another")
        await button(forking, "Fork").click()
        await expect(forking.locator(".identity code")).to_have_text("b")


async def test_a_list_that_failed_to_load_is_loaded_once_the_service_is_back(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("there", started(), ago_s=10)
    is_back = asyncio.Event()

    async def fail_until_back(route: Route) -> None:
        await (route.continue_() if is_back.is_set() else route.abort())

    await page.route("**/?*", fail_until_back)
    await page.route("**/-/ready", fail_until_back)
    await page.goto(f"{address}#/")
    await expect(page.locator(".sidebar").get_by_role("alert")).to_contain_text(UNREACHABLE)
    await expect(page.locator(".connection")).to_have_text("Reconnecting…")
    is_back.set()
    await expect(page.locator('.item[href$="/there"]')).to_have_count(1)
    await expect(page.get_by_role("alert")).to_have_count(0)
    await expect(page.locator(".connection")).to_have_text("Live")
    await service.record("there", pb.InstanceTerminated())
    await expect(page.locator('.item[href$="/there"]')).to_contain_text("Terminated")


async def test_a_page_of_the_list_that_failed_to_load_is_loaded_once_the_service_is_back(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    for number in range(40):
        await service.stage(f"of-many-{number}", [(0, PROMPT), (1, pb.InstanceTerminated())], ago_s=50)
    is_back = asyncio.Event()

    async def fail_until_back(route: Route) -> None:
        await (route.continue_() if is_back.is_set() else route.abort())

    await page.route("**/?*pageToken=*", fail_until_back)
    await page.route("**/-/ready", fail_until_back)
    await page.goto(f"{address}#/?state=terminated")
    await expect(page.locator(".item")).to_have_count(30)
    await button(page, "Show older").click()
    await expect(page.locator(".sidebar").get_by_role("alert")).to_contain_text(UNREACHABLE)
    is_back.set()
    await expect(page.locator('.item[href*="/of-many-0"]')).to_have_count(1)
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_the_refusal_of_an_action_is_shown_until_the_state_changes(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("refused", started(), ago_s=10)
    await page.goto(f"{address}#/instances/refused")
    refusal = page.locator(".actions").get_by_role("alert")
    await button(page, "Pause").click()  # which a staged service does not implement
    await expect(refusal).to_have_count(1)
    await service.record("refused", pb.SubtaskCompleted(subtask_id="t1", attempt=1, output="Done."))
    await expect(page.locator(".lane.completed")).to_have_count(2)
    await expect(refusal).to_have_count(1)
    await service.record("refused", pb.InstancePauseRequested(), pb.InstancePaused())
    await expect_state(page, "Paused")
    await expect(refusal).to_have_count(0)


async def test_a_full_disk_is_reported_until_an_event_is_recorded_again(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("other", started(), ago_s=20)
    await page.goto(f"{address}#/new")
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "STORAGE_READ_ONLY"}
    full = json.dumps({"code": 14, "message": "the disk is full: make room", "details": [info]})

    async def refuse(route: Route) -> None:
        if route.request.method == "POST":
            await route.fulfill(status=503, content_type="application/json", body=full)
        else:
            await route.continue_()

    await page.route("**/", refuse)
    await page.get_by_label("Prompt").fill("Build it")
    await button(page, "Start").click()
    alert = page.locator("main").get_by_role("alert")
    await expect(alert).to_have_text("the disk is full: make room")
    await page.get_by_role("link", name="Active", exact=True).click()  # a read, which a full disk allows
    await expect(page.locator('.item[href*="/other"]')).to_have_count(1)
    await expect(alert).to_have_count(1)
    await service.record("other", pb.InstanceTerminated())
    await expect(alert).to_have_count(0)


async def test_an_invalid_field_is_reported_until_a_field_changes(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.goto(page_url(service))
        await page.get_by_label("Prompt").fill("Build it")
        await page.get_by_text("Options").click()
        await page.get_by_label("Big model: plans and synthesises").fill("nobody/knows")
        await button(page, "Start").click()
        await expect(page.get_by_role("alert")).to_contain_text("nobody")
        await page.get_by_label("Big model: plans and synthesises").fill("openai/other")
        await expect(page.get_by_role("alert")).to_have_count(0)
        await create_instance(service, "a", config={"reviewPlan": True})
        await page.goto(page_url(service, "a"))
        await page.locator(".draft").nth(0).get_by_label("t2").check()
        await page.locator(".draft").nth(1).get_by_label("t1").check()
        await button(page, "Approve the edited plan").click()
        await expect(page.get_by_role("alert")).to_contain_text("in a cycle")
        await button(page, "Remove Part 2").click()
        await expect(page.get_by_role("alert")).to_have_count(0)


async def test_the_error_of_an_attempt_is_no_longer_that_of_its_subtask_once_the_next_attempt_starts(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("again", started(), ago_s=10)
    await page.goto(f"{address}#/instances/again")
    await service.record("again", rate_limited(in_s=0))
    await page.locator("[data-lane=subtask-t1] .row").click()
    await expect(page.locator(".panel .failure")).to_contain_text("RATE_LIMITED")
    await service.record("again", pb.SubtaskStarted(subtask_id="t1", attempt=2, model=SMALL))
    await expect(page.locator(".panel .failure")).to_have_count(0)
    await expect(page.locator(".panel .attempts")).to_contain_text("RATE_LIMITED")


async def test_no_next_attempt_is_announced_where_there_will_be_none(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("halted", started(), ago_s=10)
    await page.goto(f"{address}#/instances/halted")
    note = page.locator("[data-lane=subtask-t1] .note")
    await service.record("halted", rate_limited(in_s=3600))
    await expect(note).to_contain_text("RATE_LIMITED: tries again in")
    await service.record("halted", pb.InstancePauseRequested(), pb.InstancePaused())
    await expect(note).to_have_text("RATE_LIMITED: tries again once resumed")
    await service.record("halted", pb.InstanceTerminated())
    await expect_state(page, "Terminated")
    await expect(note).to_have_text("RATE_LIMITED")
    await expect(page.locator("[data-lane=subtask-t1] .retry-wait")).to_have_count(0)
