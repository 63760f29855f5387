"""What the service writes down of itself: the stderr of a real process."""

import json
import re
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aiohttp import web
from support import misbehaviour
from support.endpoint import ROLES, Answer, Call, Endpoint, WorkerGate, completion, cut, cut_amid, failing
from support.process import Process, on_endpoint, process

from orchestrator.auth import token_file, tokens
from orchestrator.auth.caller import Role
from orchestrator.auth.token_file import Token
from orchestrator.client import Client
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.instance_pb2 import STATE_COMPLETE, STATE_ERRORED, InstanceConfig
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
METADATA = (("x-request-id", "request-7"), ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"))
PROMPT = "an unmistakable prompt"


def entries(service: Process, message: str = "") -> Sequence[dict[str, Any]]:
    """The lines of a service that has ended; with a message, those that have it."""
    found = [json.loads(line) for line in service.log.splitlines()]
    return [entry for entry in found if message in ("", entry["message"])]


def config(max_attempts: int = 3) -> InstanceConfig:
    """Retries at once."""
    message = InstanceConfig(retry={"max_attempts": max_attempts})
    message.retry.initial_delay.FromMilliseconds(10)
    message.retry.max_delay.FromMilliseconds(10)
    return message


async def test_the_life_of_an_instance_is_in_the_log(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, ORCHESTRATOR_LOG_FORMAT="json", **on_endpoint(endpoint.url)) as service,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        stub = OrchestratorStub(channel)
        await stub.CreateInstance(pb.CreateInstanceRequest(prompt=PROMPT, id="i1"), metadata=METADATA)
        await stub.WaitInstance(pb.WaitInstanceRequest(id="i1"))
    messages = [entry["message"] for entry in entries(service)]
    assert messages == [
        "service started",
        "instance created",
        "instance complete",
        "service stopping",
        "service stopped",
    ]
    started, created, complete, *_ = entries(service)
    assert started["settings"]["big_model"] == "ORCHESTRATOR_BIG_MODEL"
    assert (started["big_model"], started["grpc_address"]) == ("openai/big", service.grpc_address)
    origin = {"instance": "i1", "request_id": "request-7", "trace_id": TRACE_ID}
    assert origin.items() <= created.items()
    assert origin.items() <= complete.items()
    used = {"input_tokens": 400, "output_tokens": 80, "model_calls": 4, "cost_usd": 0.0}
    assert used.items() <= complete.items()
    assert 0 < complete["duration_s"] < 60
    assert {entry["level"] for entry in entries(service)} == {"info"}


async def test_each_failed_attempt_is_in_the_log_with_its_cause(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.subtask_id == "t1":
            return failing(503, f"no room for {PROMPT}")
        return None

    async with (
        Endpoint(script, subtasks=1) as endpoint,
        process(tmp_path, ORCHESTRATOR_LOG_FORMAT="json", **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create(PROMPT, instance_id="i1", config=config())
        await client.wait("i1")
    attempts = [entry for entry in entries(service) if entry["message"].startswith("attempt failed")]
    assert [(entry["attempt"], entry["message"]) for entry in attempts] == [
        (1, "attempt failed"),
        (2, "attempt failed"),
        (3, "attempt failed for good"),
    ]
    expected = {
        "level": "warning",
        "instance": "i1",
        "stage": "subtask",
        "subtask": "t1",
        "model": "openai/small",
        "reason": "OVERLOADED",
    }
    for entry in attempts:
        assert expected.items() <= entry.items()
        assert entry["cause"].endswith("could not answer now, status 503")
    assert ["retry_s" in entry for entry in attempts] == [True, True, False]
    (errored,) = entries(service, "instance errored")
    assert (errored["level"], errored["reason"], errored["subtask"]) == ("warning", "SUBTASK_FAILED", "t1")


async def test_a_gate_that_closes_and_opens_is_in_the_log(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return (
            failing(429, "slow down", Retry_After="1")
            if call.attempt == 1 and call.role == "planning"
            else None
        )

    async with (
        Endpoint(script, subtasks=1) as endpoint,
        process(tmp_path, ORCHESTRATOR_LOG_FORMAT="json", **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create(PROMPT, instance_id="i1", config=config())
        await client.wait("i1")
    (closed,) = entries(service, "gate closed")
    assert (closed["level"], closed["gate"], closed["reason"]) == ("warning", "openai/big", "too many calls")
    assert 1 <= closed["wait_s"] < 2
    (opened,) = entries(service, "gate opened")
    assert (opened["level"], opened["gate"]) == ("info", "openai/big")


async def test_storage_that_takes_no_writes_is_an_error_until_it_does(tmp_path: Path) -> None:
    gate = WorkerGate()
    async with (
        Endpoint(gate, subtasks=1) as endpoint,
        process(tmp_path, ORCHESTRATOR_LOG_FORMAT="json", **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create(PROMPT, instance_id="i1")
        await endpoint.wait_for_calls(2)
        pid = service.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
        gate.opened.set()
        fault = await next_entry(service, "takes no writes")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        recovery = await next_entry(service, "takes writes again")
        assert (await client.wait("i1")).instance.state == STATE_COMPLETE
    assert (fault["level"], recovery["level"]) == ("error", "warning")
    assert not [entry for entry in entries(service) if "takes no writes" in entry["message"]]


async def next_entry(service: Process, part: str) -> dict[str, Any]:
    """Return the next line whose message has a part."""
    assert service.process.stderr
    while True:
        entry: dict[str, Any] = json.loads(await service.process.stderr.readline())
        if part in entry["message"]:
            return entry


async def test_a_crash_is_told_at_the_next_start(tmp_path: Path) -> None:
    gate = WorkerGate()
    async with Endpoint(gate, subtasks=1) as endpoint:
        variables = {"ORCHESTRATOR_LOG_FORMAT": "json", **on_endpoint(endpoint.url)}
        async with process(tmp_path, **variables) as service:
            async with grpc.aio.insecure_channel(service.grpc_address) as channel:
                request = pb.CreateInstanceRequest(prompt=PROMPT, id="i1")
                await OrchestratorStub(channel).CreateInstance(request, metadata=METADATA)
            async with Client(service.grpc_address) as client:
                async for event in client.stream_events("i1"):
                    if event.HasField("subtask_started"):
                        break
            await service.kill()
        gate.opened.set()
        async with process(tmp_path, **variables) as service, Client(service.grpc_address) as client:
            await client.wait("i1")
    assert entries(service, "service started")[0]["recovered"] == 1
    (failed,) = entries(service, "attempt failed")
    assert (failed["level"], failed["reason"]) == ("warning", "INTERRUPTED")
    (complete,) = entries(service, "instance complete")
    assert failed["trace_id"] == complete["trace_id"] == TRACE_ID, "the log keeps the request"


KEY = "sk-a-secret-of-this-test"
OUTPUT = "an unmistakable output"
ECHO = f"{PROMPT}, {OUTPUT}, {KEY}"
PLAN = {"summary": OUTPUT, "subtasks": [{"id": "t1", "title": OUTPUT, "instructions": OUTPUT}]}
WAYS: Sequence[Answer] = (
    *(failing(status, ECHO) for status in (400, 401, 403, 404, 413, 422, 429, 500, 503)),
    web.Response(text=f"<html><title>{ECHO}</title></html>", content_type="text/html"),
    web.json_response({"error": {"message": ECHO, "code": "insufficient_quota"}}, status=429),
    web.json_response({"unknown": ECHO}),
    web.Response(body=ECHO.encode(), content_type="application/json"),
    {"error": {"message": ECHO}},
    completion(ECHO, "content_filter"),
    completion(ECHO, "error"),
    completion(None, refusal=ECHO),
    completion(ECHO, ECHO),
    completion(""),
    json.dumps({**PLAN, "subtasks": [{"id": ECHO, "instructions": ECHO, "depends_on": [ECHO, "t9"]}]}),
    ECHO,
    cut,
    cut_amid,
    misbehaviour.streaming(after=ECHO),
    misbehaviour.reset_amid_stream,
)


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_no_line_of_a_run_that_fails_in_every_way_holds_a_prompt_an_output_or_a_key(
    tmp_path: Path, level: str
) -> None:
    def script(call: Call) -> Answer:
        way = re.search(r"way (\w+) (\d+)", call.prompt_text)
        assert way
        role, number = way.groups()
        if call.role == role:
            answer = WAYS[int(number)]
            return copy_of(answer) if isinstance(answer, web.Response) else answer
        return json.dumps(PLAN) if call.role == "planning" else OUTPUT

    async with (
        Endpoint(script) as endpoint,
        process(
            tmp_path,
            ORCHESTRATOR_LOG_FORMAT="json",
            ORCHESTRATOR_LOG_LEVEL=level,
            ORCHESTRATOR_IDLE_TIMEOUT_S="5",
            **on_endpoint(endpoint.url),
        ) as service,
        Client(service.grpc_address) as client,
    ):
        ids = [f"{role}-{number}" for role in ROLES.values() for number in range(len(WAYS))]
        for instance_id in ids:
            prompt = f"{PROMPT}, way {instance_id.replace('-', ' ')}"
            await client.create(prompt, instance_id=instance_id, config=config(2))
        states = [(await client.wait(each)).instance.state for each in ids]
    assert states.count(STATE_ERRORED) > len(states) / 2
    assert KEY not in service.log
    if level == "debug":
        assert PROMPT in service.log, "which is what this level is for"
        return
    for text in (PROMPT, OUTPUT):
        assert text not in service.log
    errored = {entry["instance"] for entry in entries(service, "instance errored")}
    assert errored == {each for each, state in zip(ids, states, strict=True) if state == STATE_ERRORED}


def copy_of(answer: web.Response) -> web.Response:
    """A response can be sent once."""
    return web.Response(body=answer.body, status=answer.status, content_type=answer.content_type)


async def test_a_log_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        labels = {f"l{number}": "x" * 60 for number in range(8)}
        requests = [
            pb.CreateInstanceRequest(prompt="p", id=f"{'i' * 90}{number}", labels=labels)
            for number in range(100)
        ]
        for start in range(8):  # some 300 KB, and a pipe holds 64
            for each in requests:
                each.id = f"{start}{each.id[1:]}"
            await client.create_all(requests)
            for each in requests:
                await client.wait(each.id)
    assert service.log.count("instance complete") == 800


async def test_the_ready_line_stands_alone_on_stdout(tmp_path: Path) -> None:
    service = Process(tmp_path, on_endpoint("http://127.0.0.1:1/v1"))
    await service.start()
    service.process.terminate()
    output, errors = await service.process.communicate()
    assert output == b""
    assert b" INFO service started version=" in errors


async def test_lines_name_tenant_and_actor_and_hold_no_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    token = tokens.generate()
    token_file.add(file, Token("ann", "acme", Role.ADMIN, tokens.digest(token), None, None))
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(
            tmp_path,
            ORCHESTRATOR_LOG_FORMAT="json",
            ORCHESTRATOR_LOG_LEVEL="debug",
            ORCHESTRATOR_AUTH_TOKENS_FILE=str(file),
            **on_endpoint(endpoint.url),
        ) as service,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        stub, metadata = OrchestratorStub(channel), (("authorization", f"Bearer {token}"),)
        await stub.CreateInstance(pb.CreateInstanceRequest(prompt=PROMPT, id="i1"), metadata=metadata)
        await stub.WaitInstance(pb.WaitInstanceRequest(id="i1"), metadata=metadata)
        await stub.DeleteInstance(pb.DeleteInstanceRequest(id="i1"), metadata=metadata)
    assert token not in service.log
    asked = [*entries(service, "instance created"), *entries(service, "instance deleted")]
    assert len(asked) == 2
    for entry in asked:
        assert {"instance": "i1", "tenant": "acme", "actor": "ann"}.items() <= entry.items()
    assert entries(service, "instance complete")[0]["tenant"] == "acme"
