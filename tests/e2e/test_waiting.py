"""Instances wait with a reason: a provider without its key, and the bulk retry that mends a wrong key."""

import asyncio
from pathlib import Path

from playwright.async_api import Browser, expect
from support.endpoint import Answer, Call, Endpoint, failing, hang
from support.page import assert_accessible, create_instance, expect_state, open_page, page_url
from support.process import on_endpoint, process, run_command

from orchestrator.client import Client
from orchestrator.v1 import instance_pb2

OF_GROQ = {"config": {"bigModel": "groq/big", "smallModel": "groq/small"}}
COUNT = 20


def groq(endpoint: Endpoint) -> dict[str, str]:
    return {"GROQ_BASE_URL": endpoint.url, "GROQ_API_KEY": "a-key"}


async def test_without_a_providers_key_instances_wait_with_the_reason_and_continue_with_it(
    browser: Browser, tmp_path: Path
) -> None:
    is_held = True

    def script(_: Call) -> Answer:
        return hang if is_held else None

    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url), **groq(endpoint)) as service,
        open_page(browser) as page,
    ):
        names = [f"a{number}" for number in range(COUNT)]
        await asyncio.gather(*(create_instance(service, name, **OF_GROQ) for name in names))
        await endpoint.wait_for_calls(1)
        await service.stop()
        is_held = False
        before = len(endpoint.calls)
        for name in groq(endpoint):  # an endpoint on loopback would need no key
            del service.variables[name]
        await service.start("up")

        reason = "GROQ_API_KEY"
        async with Client(service.grpc_address) as client:
            listed = (await client.list(page_size=COUNT)).instances
            while not all(each.waiting_reason for each in listed):
                await asyncio.sleep(0)
                listed = (await client.list(page_size=COUNT)).instances
            assert len(listed) == COUNT
            assert all(reason in each.waiting_reason for each in listed)
            assert not {each.state for each in listed} - {
                instance_pb2.STATE_RUNNING,
                instance_pb2.STATE_QUEUED,
            }
            sequences = {each.id: each.last_sequence for each in listed}
        shown = await run_command(service, "get", "a0")
        assert reason in shown
        lines = (await run_command(service, "list")).splitlines()
        assert len(lines) == COUNT
        assert all(reason in line.split("\t")[-1] for line in lines)
        await page.goto(page_url(service, "a0"))
        await expect(page.locator(".waiting").first).to_contain_text(reason)
        await expect(page.locator(".item .waiting")).to_have_count(COUNT)
        await assert_accessible(page)
        async with Client(service.grpc_address) as client:
            again = (await client.list(page_size=COUNT)).instances
            assert {each.id: each.last_sequence for each in again} == sequences
        assert len(endpoint.calls) == before

        await service.stop()
        service.variables |= groq(endpoint)
        await service.start("up")
        async with Client(service.grpc_address) as client:
            ended = [(await client.wait(name, timeout_s=60)).instance for name in names]
        assert {each.state for each in ended} == {instance_pb2.STATE_COMPLETE}
        await expect_state(page, "Complete")
        await expect(page.locator(".waiting")).to_have_count(0)


async def test_failures_of_a_wrong_key_are_mended_by_one_bulk_retry(tmp_path: Path) -> None:
    is_wrong = True

    def script(_: Call) -> Answer:
        return failing(401, "no such key") if is_wrong else None

    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        names = [f"a{number}" for number in range(COUNT)]
        for name in names:
            await client.create("Build it", instance_id=name)
        for name in names:
            error = (await client.wait(name, timeout_s=30)).instance.error
            assert error.reason == "MODEL_UNAUTHENTICATED"
        is_wrong = False
        retried = await run_command(
            service, "retry", "--state", "errored", "--reason", "MODEL_UNAUTHENTICATED"
        )
        assert retried.count(" is retried ") == COUNT
        for name in names:
            instance = (await client.wait(name, timeout_s=60)).instance
            assert instance.state == instance_pb2.STATE_COMPLETE
