"""Models that take fewer tokens than are asked for, by the service as its own process, over real HTTP."""

from pathlib import Path

from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from support.endpoint import Answer, Call, Endpoint
from support.process import on_endpoint, process

from orchestrator.client import Client
from orchestrator.v1 import instance_pb2 as pb

CONTEXT = 7968
"""Tokens that @cf/meta/llama-3.1-8b-instruct takes at Workers AI."""
QUICK = pb.RetryPolicy(initial_delay=Duration(nanos=1_000_000), max_delay=Duration(nanos=1_000_000))


def tokens(text: str) -> int:
    return len(text) // 4


def workers_ai(call: Call) -> Answer:
    """What Workers AI answers where the prompt and the limit are over the context."""
    needed = tokens(call.prompt_text) + call.body["max_tokens"]
    if needed <= CONTEXT:
        return "word " * 1600 if call.role == "work" else None
    message = (
        f"AiError: Ai: The estimated number of input and maximum output tokens ({needed}) exceeded this "
        f"model context window limit ({CONTEXT}). (17851589-f2e6-405d-b67c-5550e52ee1c1)"
    )
    body = {"errors": [{"message": message, "code": 5021}], "success": False, "result": {}, "messages": []}
    return web.json_response(body, status=413)


def variables(endpoint: Endpoint) -> dict[str, str]:
    return {
        "CLOUDFLARE_BASE_URL": endpoint.url,
        "CLOUDFLARE_API_TOKEN": "a-secret-of-this-test",
        "ORCHESTRATOR_BIG_MODEL": "cloudflare/@cf/meta/llama-3.1-8b-instruct",
        "ORCHESTRATOR_SMALL_MODEL": "cloudflare/@cf/meta/llama-3.1-8b-instruct",
    }


async def test_a_workers_ai_model_with_a_small_context_runs_with_the_defaults(tmp_path: Path) -> None:
    async with (
        Endpoint(workers_ai) as endpoint,
        process(tmp_path, **variables(endpoint)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("Build it", instance_id="a")
        instance = (await client.wait("a", timeout_s=30)).instance
    assert instance.state == pb.STATE_COMPLETE, instance.error
    assert all(subtask.attempt == 1 for subtask in instance.subtasks)
    assert instance.usage.model_calls == 5
    assert len(endpoint.calls) <= 10


async def test_outputs_that_do_not_fit_the_context_are_merged(tmp_path: Path) -> None:
    async with (
        Endpoint(workers_ai, subtasks=6) as endpoint,
        process(tmp_path, **variables(endpoint)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("Build it", instance_id="a", config=pb.InstanceConfig(retry=QUICK))
        instance = (await client.wait("a", timeout_s=30)).instance
    assert instance.state == pb.STATE_COMPLETE, instance.error
    assert endpoint.count("synthesis") > 1


async def test_the_limit_is_the_services_unless_an_instance_sets_its_own(tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url), ORCHESTRATOR_MAX_OUTPUT_TOKENS="1234") as service,
        Client(service.grpc_address) as client,
    ):
        for name, config in (("a", pb.InstanceConfig()), ("b", pb.InstanceConfig(max_output_tokens=99))):
            await client.create("Build it", instance_id=name, config=config)
            instance = (await client.wait(name, timeout_s=30)).instance
            assert instance.config.max_output_tokens == (1234 if name == "a" else 99)
    assert [call.body["max_tokens"] for call in endpoint.calls] == [1234] * 5 + [99] * 5
