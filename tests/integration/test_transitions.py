"""Every action in every state, over gRPC: what the table allows happens, what it forbids changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.service import Service, service

from orchestrator.core.instance import TERMINAL
from orchestrator.core.state import TRANSITIONS
from orchestrator.core.wire import STATUS
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub

Call = Callable[[OrchestratorStub], "grpc.aio.UnaryUnaryCall[Any, Any]"]

ACTIONS: dict[str, tuple[str, Call]] = {
    "pause": ("instance_pause_requested", lambda stub: stub.PauseInstance(pb.PauseInstanceRequest(id="a"))),
    "resume": ("instance_resumed", lambda stub: stub.ResumeInstance(pb.ResumeInstanceRequest(id="a"))),
    "terminate": (
        "instance_terminated",
        lambda stub: stub.TerminateInstance(pb.TerminateInstanceRequest(id="a")),
    ),
    "retry": ("instance_retried", lambda stub: stub.RetryInstance(pb.RetryInstanceRequest(id="a"))),
    "restart": ("instance_restarted", lambda stub: stub.RestartInstance(pb.RestartInstanceRequest(id="a"))),
    "review": (
        "plan_reviewed",
        lambda stub: stub.ReviewPlan(pb.ReviewPlanRequest(id="a", decision=event_pb2.DECISION_APPROVE)),
    ),
    "delete": ("", lambda stub: stub.DeleteInstance(pb.DeleteInstanceRequest(id="a"))),
}


async def answer(request: ModelRequest) -> Answer:
    """Hangs at work, and fails where the prompt asks for it."""
    prompt = request.prompt.messages[-1].content
    if "fail" in prompt:
        return ModelError("REQUEST_REJECTED", "no", retryable=False)
    if request.prompt.role == "planning":
        return plan_text(2)
    if "hang" in prompt:
        await asyncio.Event().wait()
    return "done"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path / "log.db", Scripted(answer), max_active=1) as running:
        yield running


async def create(running: Service, prompt: str, instance_id: str = "a", **config: object) -> None:
    await running.stub.CreateInstance(
        pb.CreateInstanceRequest(prompt=prompt, id=instance_id, config=instance_pb2.InstanceConfig(**config))
    )


async def bring_to(running: Service, state: str) -> None:
    """Bring instance a into a state where it stays."""
    stub = running.stub
    match state:
        case "queued":
            await create(running, "hang", "first")
            await create(running, "x")
        case "running":
            await create(running, "hang")
            await wait_for_event(running, "subtask_started")
        case "waitingForPause":
            await bring_to(running, "running")
            await stub.PauseInstance(pb.PauseInstanceRequest(id="a"))
        case "paused":
            await bring_to(running, "queued")
            await stub.PauseInstance(pb.PauseInstanceRequest(id="a"))
        case "waiting":
            await create(running, "x", review_plan=True)
            await wait_for_event(running, "plan_completed")
        case "complete":
            await create(running, "x")
            await running.ended("a")
        case "errored":
            await create(running, "fail")
            await running.ended("a")
        case "terminated":
            await bring_to(running, "queued")
            await stub.TerminateInstance(pb.TerminateInstanceRequest(id="a"))
    assert (await stub.GetInstance(pb.GetInstanceRequest(id="a"))).status.status == state


async def wait_for_event(running: Service, kind: str) -> None:
    async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="a")):
        if any(event.HasField(kind) for event in message.batch.events):
            return


async def events(running: Service) -> list[event_pb2.Event]:
    request = pb.StreamEventsRequest(id="a", follow=False)
    messages = [message async for message in running.stub.StreamEvents(request)]
    return [event for message in messages for event in message.batch.events]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("state", STATUS.values())
async def test_each_action_has_the_effect_that_the_table_states(
    running: Service, state: str, action: str
) -> None:
    await bring_to(running, state)
    number = next(number for number, name in STATUS.items() if name == state)
    kind, call = ACTIONS[action]
    before = await events(running)
    if kind in TRANSITIONS[number]:
        instance = (await call(running.stub)).instance
        new = (await events(running))[len(before)]
        assert new.HasField(kind)
        assert instance.last_sequence > len(before)
        if instance.last_sequence == new.sequence:
            assert instance.state in TRANSITIONS[number][kind]
    elif action == "delete" and number in TERMINAL:
        await call(running.stub)
        with pytest.raises(grpc.aio.AioRpcError, match="no instance 'a'"):
            await events(running)
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(running.stub)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(caught.value)
        assert status
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain) == ("STATE_FORBIDS", "orchestrator")
        assert dict(info.metadata) == {"state": state, "action": action}
        assert await events(running) == before
