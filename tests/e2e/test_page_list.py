"""The list of instances: its order, search, filters and count, and its rows."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, expect
from support.endpoint import Endpoint
from support.page import assert_accessible, button, evaluate_in_module, open_page, page_url, response_held
from support.process import on_endpoint, process
from support.staged_service import StagedService, Step

from orchestrator.cli.progress import usage_line
from orchestrator.core.instance import Usage
from orchestrator.core.wire import usage_message
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1.instance_pb2 import Failure, InstanceConfig

MODELS = InstanceConfig(big_model="openai/big", small_model="openai/small")
REFUSED = Failure(reason="MODEL_UNAUTHENTICATED", message="openai refuses the key: set OPENAI_API_KEY")


def ended(prompt: str = "Build it", **labels: str) -> list[Step]:
    created = pb.InstanceCreated(prompt=prompt, config=MODELS, labels=labels)
    return [(0, created), (1, pb.InstanceTerminated())]


async def ids(page: Page) -> list[str]:
    hrefs = await page.locator(".item").evaluate_all("all => all.map(each => each.hash)")
    return [href.removeprefix("#/instances/").partition("?")[0] for href in hrefs]


async def test_a_list_updated_live_has_the_order_of_a_reloaded_one(browser: Browser, tmp_path: Path) -> None:
    batch = {"requests": [{"prompt": f"Part {number}", "id": f"of-batch-{number}"} for number in range(20)]}
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
        httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest,
    ):
        await page.goto(page_url(service))
        await expect(page.locator(".connection")).to_have_text("Live")
        await expect(page.locator(".count")).to_have_text("Nothing here yet: start with a prompt.")
        await rest.post("/-/instances:batchCreate", json=batch)
        await rest.post("/", json={"prompt": "The last", "id": "last"})
        await expect(page.locator(".item")).to_have_count(21)
        followed = await ids(page)
        await page.reload()
        await expect(page.locator(".item")).to_have_count(21)
        assert followed == await ids(page)
        assert followed == ["last", *(f"of-batch-{number}" for number in reversed(range(20)))]


async def test_a_clock_that_was_set_back_does_not_change_the_order(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await page.goto(f"{address}#/?label=clock=back")
    await expect(page.locator(".connection")).to_have_text("Live")
    for ago_s, name in ((0, "first"), (3600, "set-back"), (1800, "last")):
        await service.stage(name, ended(clock="back"), ago_s=ago_s)
        await service.record(name, pb.InstanceRetried(config=MODELS))  # which wakes the streams
    await expect(page.locator(".item")).to_have_count(3)
    assert await ids(page) == ["last", "set-back", "first"]
    await page.reload()
    await expect(page.locator(".item")).to_have_count(3)
    assert await ids(page) == ["last", "set-back", "first"]


async def test_an_instance_that_starts_to_match_has_the_position_of_a_reloaded_list(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    running = [(0, pb.InstanceCreated(prompt="Build it", config=MODELS, labels={"of": "fits"}))]
    for number in range(5):  # at the very same time
        await service.stage(f"fits-{number}", running, ago_s=100)
    await service.record("fits-0", pb.InstanceErrored(error=REFUSED))
    await service.record("fits-4", pb.InstanceErrored(error=REFUSED))
    await page.goto(f"{address}#/?state=errored&label=of=fits")
    await expect(page.locator(".item")).to_have_count(2)
    await service.record("fits-3", pb.InstanceErrored(error=REFUSED))
    await service.record("fits-1", pb.InstanceErrored(error=REFUSED))
    await expect(page.locator(".item")).to_have_count(4)
    assert await ids(page) == ["fits-4", "fits-3", "fits-1", "fits-0"]


async def test_an_instance_with_a_reused_id_is_the_newest(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    for name in ("twice", "once"):
        await service.stage(name, ended("The old prompt", of="twice"), ago_s=100)
    await page.goto(f"{address}#/?label=of=twice")
    await expect(page.locator(".item")).to_have_count(2)
    del service.events["twice"]
    created = pb.InstanceCreated(prompt="The new prompt", config=MODELS, labels={"of": "twice"})
    await service.record("twice", created)
    await expect(page.locator(".item").first).to_contain_text("The new prompt")
    assert await ids(page) == ["twice", "once"]


async def test_the_search_covers_the_loaded_instances_and_says_so(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    await service.stage("deep", ended("Write an Epic about logs", of="search", team="shop"), ago_s=0)
    for number in range(35):
        await service.stage(f"haiku-{number}", ended("Write a haiku", of="search"), ago_s=0)
    items, count, search = page.locator(".item"), page.locator(".count"), page.get_by_role("searchbox")
    await page.goto(f"{address}#/?label=of=search")
    await expect(count).to_have_text("The 30 newest instances, there are older ones")
    await search.fill("epic")
    await expect(count).to_have_text(
        "0 of the 30 newest instances, by id, prompt and label; older ones are not searched"
    )
    await button(page, "Search older ones").click()
    await expect(count).to_have_text("1 of 36 instances, by id, prompt and label")
    assert await ids(page) == ["deep"]
    await expect(page.locator(".sidebar").get_by_role("button", name="older")).to_have_count(0)
    for found, words in (
        (1, "TEAM=shop"),
        (1, "about write"),
        (1, "deep"),
        (11, "haiku-2 haiku"),
        (0, "nix"),
    ):
        await search.fill(words)
        await expect(items).to_have_count(found)
    await search.fill("haiku-34")
    await items.click()
    assert page.url.endswith("#/instances/haiku-34?label=of%3Dsearch&search=haiku-34")
    await page.reload()
    await expect(search).to_have_value("haiku-34")
    await expect(items).to_have_count(1)
    await search.fill("")
    await expect(count).to_have_text("The 30 newest instances, there are older ones")


async def test_the_service_filters_by_label(stage: tuple[StagedService, str], page: Page) -> None:
    service, address = stage
    for number in range(31):
        await service.stage(f"many-{number}", ended(), ago_s=0)
    await service.stage("both", ended(team="a b", env="x=y"), ago_s=0)
    await service.stage("one", ended(team="a b"), ago_s=0)
    for number in range(31):
        await service.stage(f"more-{number}", ended(), ago_s=0)
    items, field = page.locator(".item"), page.get_by_label("Filter by label")
    await page.goto(address)
    await expect(items).to_have_count(30)
    await field.fill("team")
    await expect(button(page, "Filter")).to_have_count(0)
    await field.fill("team=a b")
    await button(page, "Filter").click()
    await expect(items).to_have_count(2)
    await expect(page.locator(".count")).to_have_text("2 instances")
    await field.fill("env=x=y")
    await field.press("Enter")
    await expect(items).to_have_count(1)
    await service.stage("live", ended(team="a b", env="x=y"), ago_s=0)
    await service.stage("unlike", ended(team="a b", env="z"), ago_s=0)
    await service.record("unlike", pb.InstanceRetried(config=MODELS))
    await expect(items).to_have_count(2)
    assert await ids(page) == ["live", "both"]
    await page.reload()
    await expect(items).to_have_count(2)
    await page.get_by_role("link", name="Remove the filter team=a b").click()
    await expect(page.get_by_role("list", name="Filtered by")).to_have_text(re.compile("^env=x=y"))
    await page.get_by_role("link", name="Remove the filter env=x=y").click()
    await expect(items).to_have_count(30)
    await field.fill("nobody=has")
    await field.press("Enter")
    await expect(page.locator(".count")).to_have_text("None has these labels.")


async def test_a_fork_shows_the_usage_of_its_own_calls_and_that_of_the_copied_ones(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    usage = Usage(12_000, 345, 1, 0.0123)
    planned = pb.PlanCompleted(attempt=1, model="openai/big", usage=usage_message(usage))
    created = pb.InstanceCreated(prompt="Build it", config=MODELS, forked_from="tree", copied_events=2)
    copied = [(0, created), (0, pb.PlanningStarted(attempt=1, model="openai/big")), (0, planned)]
    await service.stage("branch", [*copied, (1, pb.SynthesisStarted(attempt=1))], ago_s=10)
    own = usage_message(Usage(1_000, 11, 1))
    await page.goto(f"{address}#/instances/branch")
    await expect(page.locator(".identity")).to_contain_text(f"what is copied ({usage_line(usage)})")
    row = page.locator('.item[href$="/branch"]')
    await expect(row).not_to_contain_text("tok")
    await service.record("branch", pb.SynthesisCompleted(attempt=1, usage=own, final_result="Done."))
    await expect(row).to_contain_text("1,011 tok")
    await expect(row).not_to_contain_text("$")
    await expect(page.locator(".facts")).to_contain_text("1,011 tokens")
    await page.reload()
    await expect(row).to_contain_text("1,011 tok")
    await expect(row).not_to_contain_text("$")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_errored_row_shows_its_error(
    scheme: str, stage: tuple[StagedService, str], browser: Browser
) -> None:
    service, address = stage
    prompt = pb.InstanceCreated(prompt="Build it", config=MODELS, labels={"scheme": scheme})
    name = f"errored-{scheme}"
    await service.stage(name, [(0, prompt), (1, pb.InstanceErrored(error=REFUSED))], ago_s=10)
    async with open_page(browser, color_scheme=scheme) as page:
        await page.goto(f"{address}#/?label=scheme={scheme}")
        reason = page.locator(".item .reason")
        await expect(reason).to_have_text(f"{REFUSED.reason} {REFUSED.message}")
        await assert_accessible(page)
        await service.record(name, pb.InstanceRetried(config=MODELS))
        await expect(page.locator(".item")).to_contain_text("Queued")
        await expect(reason).to_have_count(0)


NUMBERS = [0, 1, 7, 999, 1000, 12_340, 999_999, 1_000_000, 123_456_789]
COSTS = [0.00001, 0.00004999, 0.00005, 0.0031, 0.01, 0.0123456, 0.03125, 0.09375, 1.00005, 12.5, 1234.56785]


async def test_tokens_and_costs_are_formatted_as_on_the_command_line(
    stage: tuple[StagedService, str], page: Page
) -> None:
    body = "return [a[0].map(n => m.tokens({inputTokens: 0, outputTokens: n})), a[1].map(m.cost), m.cost(0)];"
    tokens, costs, unknown = await evaluate_in_module(page, stage[1], "format.js", body, NUMBERS, COSTS)
    assert tokens == [usage_line(Usage(0, number)) or "-" for number in NUMBERS]
    assert costs == [usage_line(Usage(cost_usd=cost)) for cost in COSTS]
    assert unknown == "-"


async def test_a_row_shows_the_last_event_also_where_the_instance_was_being_fetched_when_it_came(
    stage: tuple[StagedService, str], page: Page
) -> None:
    service, address = stage
    running = ended(fetched="late")[:1]
    for name in ("fetched", "marker"):
        await service.stage(name, running, ago_s=10)
    await page.goto(f"{address}#/?state=terminated&label=fetched=late")
    await expect(page.locator(".connection")).to_have_text("Live")
    await expect(page.locator(".instances")).to_have_attribute("aria-busy", "false")
    async with response_held(page, "/fetched") as answered:
        await service.record("fetched", pb.PlanningStarted(attempt=1, model="openai/big"))
        await answered.wait()
        await service.record("fetched", pb.InstanceTerminated())
        async with page.expect_request("**/marker"):
            await service.record("marker", pb.PlanningStarted(attempt=1, model="openai/big"))
    await expect(page.locator(".item")).to_have_count(1)


async def test_an_instance_that_is_deleted_while_a_page_is_read_does_not_come_back(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
        httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest,
    ):
        for name in ("stays", "goes"):
            await rest.post("/", json={"prompt": "Build it", "id": name})
            await rest.get(f"/{name}:wait")
        await page.goto(page_url(service))
        await expect(page.locator(".item")).to_have_count(2)
        async with response_held(page, "states=STATE_COMPLETE*") as answered:
            await page.get_by_role("link", name="Complete", exact=True).click()
            await answered.wait()
            assert (await rest.delete("/goes")).status_code == 200
            await expect(page.locator(".item")).to_have_count(1)
        await expect(page.locator(".instances")).to_have_attribute("aria-busy", "false")
        assert await ids(page) == ["stays"]
