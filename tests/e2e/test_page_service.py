"""The settings of the service, as the page shows and suggests them."""

import pytest
from playwright.async_api import Browser, Page, expect
from support.browser import DESKTOP, PHONE
from support.page import assert_accessible, open_page
from support.staged_service import StagedService

from orchestrator.core import config
from orchestrator.rpc.info import service_info
from orchestrator.settings import Settings
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1.instance_pb2 import Budget, InstanceConfig, Worker

CATALOGUE = [
    Worker(name="coder", use="writes code", model="openai/coding", instructions="Tests first."),
    Worker(name="writer", use="writes prose"),
]


@pytest.fixture
def service(stage: tuple[StagedService, str]) -> StagedService:
    service = stage[0]
    service.defaults = config.default("openai/large", "openai/little", CATALOGUE)
    return service


async def suggestions(page: Page, label: str) -> list[str]:
    """The values that a field's datalist suggests."""
    field = page.get_by_label(label)
    values: list[str] = await field.evaluate("it => [...it.list.options].map((option) => option.value)")
    return values


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_the_page_shows_the_settings_of_the_service(
    device: dict[str, object], service: StagedService, stage: tuple[StagedService, str], browser: Browser
) -> None:
    info = service_info(Settings(), service.defaults)
    async with open_page(browser, **device) as page:
        await page.goto(f"{stage[1]}#/")
        summary = page.locator(".service summary")
        await expect(summary).to_be_in_viewport(ratio=1)
        await expect(summary).to_have_text(f"Version {info.version} · openai/large, openai/little")
        await summary.click()
        settings = page.locator(".service dl")
        for text in (
            "coder (openai/coding)",
            "writes prose",
            f"{info.limits.max_active_instances:,} instances",
            f"{info.default_config.max_output_tokens:,} tokens",
            "local",
        ):
            await expect(settings).to_contain_text(text)
        await assert_accessible(page)


METRICS = """
# HELP orchestrator_instances_active Instances admitted: as many may be at work.
orchestrator_instances_active 3.0
orchestrator_queue_length 12.0
orchestrator_gate_waiting_instances{gate="openai/large"} 2.0
orchestrator_gate_waiting_instances{gate="openai"} 2.0
orchestrator_gate_closed{gate="openai/large"} 1.0
orchestrator_gate_closed{gate="openai/little"} 0.0
orchestrator_tokens_today{provider="openai",model="large",direction="input"} 1000.0
orchestrator_tokens_today{provider="openai",model="large",direction="output"} 234.0
orchestrator_tokens_today{provider="openai",model="a\\"b",direction="input"} 1.0
orchestrator_cost_usd_today{provider="openai",model="large"} 0.125
orchestrator_usage_today_start_timestamp_seconds 1728000000.0
"""


async def test_the_page_shows_how_the_service_does(
    service: StagedService, stage: tuple[StagedService, str], page: Page
) -> None:
    service.metrics = METRICS
    await page.goto(f"{stage[1]}#/")
    await page.locator(".service summary").click()
    now = page.get_by_label("The service now")
    for text in (
        "3 instances",
        "12 instances, 2 for openai/large",
        "openai/large: 1,234 tokens, $0.1250",
        'openai/a"b: 1 token',
    ):
        await expect(now).to_contain_text(text)
    await expect(now.locator("div", has_text="Throttled")).to_have_text("Throttledopenai/large")
    await expect(now).to_contain_text("Today")
    await assert_accessible(page)
    service.metrics = METRICS.replace("} 1.0\norchestrator_gate_closed", "} 0.0\norchestrator_gate_closed")
    await expect(now).to_contain_text("Throttlednothing", timeout=15_000)


async def test_settings_that_a_restart_changed_are_shown(
    service: StagedService, stage: tuple[StagedService, str], page: Page
) -> None:
    await page.goto(f"{stage[1]}#/")
    summary = page.locator(".service summary")
    await expect(summary).to_contain_text("openai/large, openai/little")
    await expect(page.locator(".connection")).to_have_text("Live")
    service.defaults = config.default("openai/only", "openai/only")
    await service.stop()
    await expect(page.locator(".connection")).to_have_text("Reconnecting…")
    await service.start()
    await expect(page.locator(".connection")).to_have_text("Live")
    await expect(summary).to_have_text("Version 0.1.0 · openai/only")


async def test_model_fields_suggest_the_models_of_the_settings_and_of_instances(
    service: StagedService, stage: tuple[StagedService, str], page: Page
) -> None:
    instance_config = InstanceConfig(big_model="openai/seen", small_model="openai/little")
    await service.stage("seen", [(0, pb.InstanceCreated(prompt="x", config=instance_config))], ago_s=10)
    await page.goto(f"{stage[1]}#/new")
    await expect(page.locator(".hint").first).to_contain_text("openai/large plans, openai/little works")
    await page.get_by_text("Options").click()
    big, small = "Big model: plans and synthesises", "Small model: works on subtasks"
    await expect(page.get_by_label(big)).to_have_attribute("placeholder", "openai/large")
    await expect(page.get_by_label(small)).to_have_attribute("placeholder", "openai/little")
    await expect(page.locator('.item[href$="/seen"]')).to_have_count(1)
    for label in (big, small):
        expected = ["openai/large", "openai/little", "openai/coding", "openai/seen"]
        assert set(expected) <= set(await suggestions(page, label))
    await expect(page.locator(".create")).to_contain_text("the workers coder, writer")


async def test_a_fork_shows_the_config_of_its_source_and_suggests_models(
    service: StagedService, stage: tuple[StagedService, str], page: Page
) -> None:
    budget = Budget(max_cost_usd=0.5, max_tokens=90_000)
    budget.max_duration.FromSeconds(90)
    own = InstanceConfig(
        big_model="openai/own",
        small_model="openai/own",
        budget=budget,
        instructions="In French.",
        workers=CATALOGUE,
    )
    steps = [(0, pb.InstanceCreated(prompt="x", config=own)), (1, pb.InstanceTerminated())]
    await service.stage("source-of-all", steps, ago_s=10)
    await page.goto(f"{stage[1]}#/instances/source-of-all")
    await page.get_by_role("button", name="Fork…").click()
    dialog = page.get_by_role("dialog")
    for label, value in {
        "Big model": "openai/own",
        "Small model": "openai/own",
        "Stop at a cost": "0.5",
        "Stop at tokens": "90000",
        "Stop after minutes": "1.5",
        "Instructions": "In French.",
    }.items():
        await expect(dialog.get_by_label(label)).to_have_attribute("placeholder", value)
    await expect(dialog).to_contain_text("the workers coder, writer")
    assert {"openai/large", "openai/own", "openai/coding"} <= set(await suggestions(page, "Big model"))
    await assert_accessible(page)
