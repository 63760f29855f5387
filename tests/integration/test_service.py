"""The service as a gRPC client sees it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from support.service import Service, service

from orchestrator.core import view
from orchestrator.core.instance import Instance
from orchestrator.core.replies import ModelReply
from orchestrator.errors import SettingsError
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.rpc.server import serving
from orchestrator.rpc.service import OrchestratorService
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

NO_ATTEMPTS = {"retry": {"max_attempts": 0}}
IN_DOLLARS = {"budget": {"max_cost_usd": 1}}
BUF = Path(sys.executable).with_name("buf")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path / "log.db", Scripted(subtasks=3)) as running:
        yield running


def planning(request: ModelRequest) -> bool:
    return request.prompt.role == "planning"


async def never(_: ModelRequest) -> Answer:
    await asyncio.Event().wait()
    return ""


@pytest.fixture
async def stuck(tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose models never answer."""
    async with service(tmp_path / "log.db", Scripted(never)) as running:
        yield running


async def stream(running: Service, instance_id: str, **options: object) -> list[pb.StreamEventsResponse]:
    request = pb.StreamEventsRequest(id=instance_id, **options)
    return [message async for message in running.stub.StreamEvents(request)]


def events_for(messages: list[pb.StreamEventsResponse]) -> list[event_pb2.Event]:
    return [event for message in messages for event in message.batch.events]


class Refusal:
    """What an RPC was refused with."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code().name
        self.message = error.details() or ""
        self.info = error_details_pb2.ErrorInfo()
        self.field = ""
        status = rpc_status.from_call(error)
        assert status
        for detail in status.details:
            request = error_details_pb2.BadRequest()
            if detail.Unpack(request):
                self.field = request.field_violations[0].field
            detail.Unpack(self.info)
        assert self.info.domain == "orchestrator"


async def refused(call: "grpc.aio.UnaryUnaryCall[object, object]") -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refusal(caught.value)


async def test_creating_returns_at_once_and_the_work_continues(running: Service) -> None:
    created = await running.stub.CreateInstance(
        pb.CreateInstanceRequest(prompt="Build it", id="mine", labels={"team": "red"})
    )
    assert created.id == created.instance.id == "mine"
    assert created.details.status == "queued"
    assert created.instance.state == instance_pb2.STATE_QUEUED
    assert created.instance.config.max_subtasks == 16
    assert created.instance.config.retry.max_attempts == 6
    answer = await running.ended("mine")
    assert answer.status.status == "complete"
    assert list(answer.status.output.orchestrator_tasks) == ["Part 1", "Part 2", "Part 3"]
    assert answer.status.output.worker_responses[0] == "The output of t1."
    assert answer.status.output.final_result == answer.instance.final_result
    assert answer.instance.labels == {"team": "red"}


async def test_an_id_is_generated_where_none_is_given(running: Service) -> None:
    ids = {(await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x"))).id for _ in range(3)}
    assert len(ids) == 3


async def test_the_full_view_contains_instructions_and_outputs(running: Service) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    await running.ended("a")
    basic = await running.stub.GetInstance(pb.GetInstanceRequest(id="a"))
    full = await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))
    assert not basic.instance.subtasks[0].output
    assert full.instance.subtasks[0].output == "The output of t1."
    assert full.instance.subtasks[0].instructions


async def test_a_plan_of_the_client_is_executed_without_planning(running: Service) -> None:
    config = instance_pb2.InstanceConfig(
        subtasks=[
            instance_pb2.Subtask(id="one", instructions="do one"),
            instance_pb2.Subtask(id="two", instructions="do two", depends_on=["one"]),
        ]
    )
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", config=config))
    answer = await running.ended("a")
    assert list(answer.status.output.worker_responses) == ["The output of one.", "The output of two."]
    kinds = [event.WhichOneof("payload") for event in events_for(await stream(running, "a"))]
    assert "planning_started" not in kinds


@pytest.mark.parametrize(
    ("request_fields", "reason", "field"),
    [
        ({}, "PROMPT_EMPTY", "prompt"),
        ({"prompt": " \n\t"}, "PROMPT_EMPTY", "prompt"),
        ({"prompt": "x" * (300 * 1024)}, "PROMPT_TOO_LARGE", "prompt"),
        ({"prompt": "x", "id": "-a"}, "ID_INVALID", "id"),
        ({"prompt": "x", "id": "a/b"}, "ID_INVALID", "id"),
        ({"prompt": "x", "id": "a" * 101}, "ID_INVALID", "id"),
        ({"prompt": "x", "request_id": "r" * 201}, "ID_INVALID", "request_id"),
        ({"prompt": "x", "request_id": "r\0s"}, "ID_INVALID", "request_id"),
        ({"prompt": "x", "labels": {"": "v"}}, "CONFIG_INVALID", "labels[]"),
        ({"prompt": "x", "labels": {"k": "a\0b"}}, "CONFIG_INVALID", "labels[k]"),
        ({"prompt": "x", "config": {"big_model": "a/" + "b" * 300}}, "CONFIG_INVALID", "config.big_model"),
        ({"prompt": "x", "config": {"max_subtasks": 0}}, "CONFIG_INVALID", "config.max_subtasks"),
        ({"prompt": "x", "config": {"big_model": "gpt"}}, "CONFIG_INVALID", "config.big_model"),
        ({"prompt": "x", "config": NO_ATTEMPTS}, "CONFIG_INVALID", "config.retry.max_attempts"),
        ({"prompt": "x", "config": IN_DOLLARS}, "CONFIG_INVALID", "config.budget.max_cost_usd"),
        ({"prompt": "x", "config": {"subtasks": [{"id": "a"}]}}, "PLAN_INVALID", "config.subtasks"),
        ({"prompt": "x", "config": {"workers": [{}]}}, "CONFIG_INVALID", "config.workers[0].name"),
    ],
)  # fmt: skip
async def test_an_invalid_request_names_the_field_and_records_nothing(
    running: Service, request_fields: dict[str, object], reason: str, field: str
) -> None:
    refusal = await refused(running.stub.CreateInstance(pb.CreateInstanceRequest(**request_fields)))
    assert (refusal.code, refusal.info.reason, refusal.field) == ("INVALID_ARGUMENT", reason, field)
    assert not (await running.stub.ListInstances(pb.ListInstancesRequest())).instances


async def test_a_page_reports_the_position_to_follow_it_from(running: Service) -> None:
    async def listed() -> tuple[int, int]:
        """How many instances, and the position that goes with them."""
        call = running.stub.ListInstances(pb.ListInstancesRequest())
        metadata = dict(await call.initial_metadata())
        return len((await call).instances), int(metadata["last-position"])

    assert await listed() == (0, 0)
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    last = (await running.ended("a")).instance.last_sequence
    assert await listed() == (1, last)
    after = pb.StreamAllEventsRequest(after_position=last)
    stream = running.stub.StreamAllEvents(after)
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="b"))
    async for message in stream:
        if message.HasField("batch"):
            assert message.batch.events[0].instance_created.prompt == "x"
            assert message.batch.events[0].instance_id == "b"
            break
    stream.cancel()


async def test_an_unknown_instance_is_not_found(running: Service) -> None:
    stub = running.stub
    for call in (
        stub.GetInstance(pb.GetInstanceRequest(id="x")),
        stub.WaitInstance(pb.WaitInstanceRequest(id="x")),
        stub.TerminateInstance(pb.TerminateInstanceRequest(id="x")),
        aiter_first(stub.StreamEvents(pb.StreamEventsRequest(id="x"))),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.info.reason) == ("NOT_FOUND", "INSTANCE_NOT_FOUND")


async def aiter_first(call: "grpc.aio.UnaryStreamCall[object, object]") -> object:
    return await anext(aiter(call))


async def test_one_request_id_makes_one_instance_however_often_it_is_sent(stuck: Service) -> None:
    request = pb.CreateInstanceRequest(prompt="x", request_id="once")
    answers = await asyncio.gather(*(stuck.stub.CreateInstance(request) for _ in range(100)))
    assert len({answer.id for answer in answers}) == 1
    assert len((await stuck.stub.ListInstances(pb.ListInstancesRequest())).instances) == 1
    request.prompt = "y"
    refusal = await refused(stuck.stub.CreateInstance(request))
    assert (refusal.code, refusal.info.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


async def test_a_used_id_is_rejected(stuck: Service) -> None:
    request = pb.CreateInstanceRequest(prompt="x", id="a")
    await stuck.stub.CreateInstance(request)
    refusal = await refused(stuck.stub.CreateInstance(request))
    assert (refusal.code, refusal.info.reason) == ("ALREADY_EXISTS", "INSTANCE_ALREADY_EXISTS")


async def test_a_stream_replays_follows_and_ends(running: Service) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    messages = await stream(running, "a")
    events = events_for(messages)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].WhichOneof("payload") == "instance_completed"
    assert messages[-1].end == pb.StreamEnd(state=instance_pb2.STATE_COMPLETE, sequence=len(events))
    assert sum(message.HasField("caught_up") for message in messages) <= 1
    for after in (0, 1, len(events) - 1, len(events)):
        rest = await stream(running, "a", after_sequence=after)
        assert events_for(rest) == events[after:]
        assert rest[-1].HasField("end")


async def test_a_stream_without_follow_ends_at_the_end_of_the_log(stuck: Service) -> None:
    await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    messages = await stream(stuck, "a", follow=False)
    assert messages[-1].HasField("caught_up")
    assert messages[-1].caught_up.sequence == events_for(messages)[-1].sequence


async def test_a_stream_past_the_end_is_out_of_range(stuck: Service) -> None:
    await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    call = stuck.stub.StreamEvents(pb.StreamEventsRequest(id="a", after_sequence=99))
    refusal = await refused(aiter_first(call))
    assert (refusal.code, refusal.info.reason) == ("OUT_OF_RANGE", "SEQUENCE_OUT_OF_RANGE")
    assert 1 <= int(refusal.info.metadata["last_sequence"]) <= 2


async def test_all_events_stream_by_position(running: Service) -> None:
    for name in ("a", "b"):
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id=name, labels={"n": name}))
        await running.ended(name)

    async def streamed(**options: object) -> list[pb.StreamAllEventsResponse]:
        request = pb.StreamAllEventsRequest(follow=False, **options)
        return [message async for message in running.stub.StreamAllEvents(request)]

    *batches, caught_up = await streamed()
    events = [event for message in batches for event in message.batch.events]
    assert batches[-1].batch.last_position == caught_up.caught_up.sequence == len(events)
    for name in ("a", "b"):
        mine = [event.sequence for event in events if event.instance_id == name]
        assert mine == list(range(1, len(mine) + 1))
    *rest, _ = await streamed(after_position=5)
    assert [event for message in rest for event in message.batch.events] == events[5:]
    *labelled, _ = await streamed(labels=["n=b"])
    assert {event.instance_id for message in labelled for event in message.batch.events} == {"b"}


async def test_a_quiet_stream_has_heartbeats(stuck: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.rpc.service.HEARTBEAT_S", 0.01)
    await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    call = stuck.stub.StreamEvents(pb.StreamEventsRequest(id="a", after_sequence=1))
    kinds = []
    async for message in call:
        kinds.append(message.WhichOneof("kind"))
        if kinds.count("heartbeat") == 2:
            break
    assert kinds.count("caught_up") == 1
    call.cancel()


async def test_a_shutdown_cuts_streams_with_unavailable(tmp_path: Path) -> None:
    async with service(tmp_path / "log.db", Scripted(never)) as running:
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
        call = running.stub.StreamEvents(pb.StreamEventsRequest(id="a"))
        await anext(aiter(call))
        reading = asyncio.create_task(drained(call))
        running.log.notifier.close()
        refusal = await refused(reading)
        assert (refusal.code, refusal.info.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")


async def drained(call: "grpc.aio.UnaryStreamCall[object, object]") -> None:
    async for _ in call:
        pass


async def test_a_wait_returns_at_its_timeout(stuck: Service) -> None:
    await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    answer = await stuck.stub.WaitInstance(pb.WaitInstanceRequest(id="a", timeout=Duration(nanos=1_000_000)))
    assert answer.status.status in {"queued", "running"}


async def test_terminating_is_final(stuck: Service) -> None:
    await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    answer = await stuck.stub.TerminateInstance(pb.TerminateInstanceRequest(id="a"))
    assert answer.instance.state == instance_pb2.STATE_TERMINATED
    refusal = await refused(stuck.stub.TerminateInstance(pb.TerminateInstanceRequest(id="a")))
    assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "STATE_FORBIDS")
    assert refusal.info.metadata == {"state": "terminated", "action": "terminate"}


async def test_listing_pages_through_all_newest_first(stuck: Service) -> None:
    for number in range(7):
        await stuck.stub.CreateInstance(
            pb.CreateInstanceRequest(prompt="x", id=f"i{number}", labels={"odd": str(number % 2)})
        )
    request = pb.ListInstancesRequest(page_size=3)
    seen = []
    while True:
        page = await stuck.stub.ListInstances(request)
        seen += [instance.id for instance in page.instances]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == [f"i{number}" for number in reversed(range(7))]
    odd = await stuck.stub.ListInstances(pb.ListInstancesRequest(labels=["odd=1"]))
    assert [instance.id for instance in odd.instances] == ["i5", "i3", "i1"]


async def test_bytes_that_are_not_a_request_are_rejected(running: Service) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        call = channel.unary_unary("/orchestrator.v1.Orchestrator/GetInstance")
        refusal = await refused(call(b"\xff\xff"))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "are no orchestrator.v1.GetInstanceRequest" in refusal.message


async def test_a_call_without_a_message_is_rejected(running: Service) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        for name in ("GetInstance", "StreamEvents"):
            call = channel.stream_unary(f"/orchestrator.v1.Orchestrator/{name}")
            refusal = await refused(call(iter(())))
            assert (refusal.code, refusal.info.reason) == ("INVALID_ARGUMENT", "CONFIG_INVALID")
            assert "no message" in refusal.message


async def test_an_overlong_wait_is_capped_at_an_hour(running: Service) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    ages = Duration(seconds=2**62)
    assert (await running.stub.WaitInstance(pb.WaitInstanceRequest(id="a", timeout=ages))).status.status


async def test_a_prompt_with_a_nul_is_recorded_unchanged(running: Service) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="a\0b", id="a", request_id="once"))
    again = pb.CreateInstanceRequest(prompt="a\0b", id="a", request_id="once")
    assert (await running.stub.CreateInstance(again)).instance.prompt == "a\0b"


@pytest.mark.parametrize(
    "token", ["MTAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMC4w", "nonsense", "MS4x", "====", "ü"]
)
async def test_an_invalid_page_token_is_rejected(running: Service, token: str) -> None:
    refusal = await refused(running.stub.ListInstances(pb.ListInstancesRequest(page_token=token)))
    assert (refusal.code, refusal.info.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_instances_are_found_by_a_prefix_of_their_id(stuck: Service) -> None:
    for name in ("rain-1", "rain-2", "Rain", "sun"):
        await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id=name))
    found = await stuck.stub.ListInstances(pb.ListInstancesRequest(id_prefix="rain-", page_size=1))
    assert [instance.id for instance in found.instances] == ["rain-2"]
    more = pb.ListInstancesRequest(id_prefix="rain-", page_token=found.next_page_token)
    assert [instance.id for instance in (await stuck.stub.ListInstances(more)).instances] == ["rain-1"]
    for prefix, reason in (("r", "PAGE_TOKEN_INVALID"), ("-", "ID_INVALID")):
        request = pb.ListInstancesRequest(id_prefix=prefix, page_token=found.next_page_token)
        assert (await refused(stuck.stub.ListInstances(request))).info.reason == reason


async def test_a_list_searches_on_where_nothing_matches_before_it_answers(
    stuck: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.event_log._SCANNED_INSTANCES", 2)
    for name in ("wanted", *(f"other-{number}" for number in range(7))):
        await stuck.stub.CreateInstance(pb.CreateInstanceRequest(id=name, prompt="Build it"))
    request = pb.ListInstancesRequest(id_prefix="wanted")
    assert [instance.id for instance in (await stuck.stub.ListInstances(request)).instances] == ["wanted"]
    monkeypatch.setattr("orchestrator.rpc.service._MAX_EMPTY_READS", 2)
    page = await stuck.stub.ListInstances(request)
    assert not page.instances
    request.page_token = page.next_page_token
    assert [instance.id for instance in (await stuck.stub.ListInstances(request)).instances] == ["wanted"]


async def test_a_page_token_is_rejected_with_other_filters(stuck: Service) -> None:
    for number in range(3):
        await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id=f"i{number}"))
    page = await stuck.stub.ListInstances(pb.ListInstancesRequest(page_size=1))
    request = pb.ListInstancesRequest(page_size=1, page_token=page.next_page_token, labels=["a=b"])
    assert (await refused(stuck.stub.ListInstances(request))).info.reason == "PAGE_TOKEN_INVALID"


async def test_a_fork_continues_from_the_stage_and_leaves_the_source_unchanged(running: Service) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", labels={"team": "red"}))
    source = (await running.ended("a")).instance
    before = events_for(await stream(running, "a"))
    changes = instance_pb2.InstanceConfig(big_model="scripted/other")
    forked = await running.stub.ForkInstance(
        pb.ForkInstanceRequest(id="a", new_id="b", stage=pb.STAGE_SYNTHESIS, config=changes)
    )
    assert (forked.instance.id, forked.instance.forked_from) == ("b", "a")
    ended = (await running.ended("b")).instance
    assert ended.state == instance_pb2.STATE_COMPLETE
    assert ended.labels == {"team": "red"}
    assert ended.usage.model_calls == source.usage.model_calls
    assert (ended.own_usage.model_calls, source.own_usage) == (1, source.usage)
    events = events_for(await stream(running, "b"))
    assert [event.sequence for event in events] == list(range(1, ended.last_sequence + 1))
    assert events[-3].synthesis_started.model == "scripted/other"
    assert events_for(await stream(running, "a")) == before
    taken = pb.ForkInstanceRequest(id="a", new_id="b", stage=pb.STAGE_PLAN)
    assert (await refused(running.stub.ForkInstance(taken))).info.reason == "INSTANCE_ALREADY_EXISTS"
    bad = pb.ForkInstanceRequest(id="a", new_id="-", stage=pb.STAGE_PLAN)
    assert (await refused(running.stub.ForkInstance(bad))).field == "new_id"


FULL_CATALOGUE = [
    instance_pb2.Worker(
        name=f"w{number}",
        use="u" * 1000,
        model="scripted/" + "m" * 190,
        instructions="i" * 8192,
        temperature=0.5,
    )
    for number in range(32)
]


async def test_a_first_event_names_the_services_catalogue_and_is_small(tmp_path: Path) -> None:
    async with service(tmp_path / "log.db", Scripted(), workers=FULL_CATALOGUE) as running:
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
        await running.ended("a")
        first, *rest = events_for(await stream(running, "a"))
        assert first.ByteSize() < 500
        assert max(event.ByteSize() for event in rest) < 500
        whole = pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL)
        config = (await running.stub.GetInstance(whole)).instance.config
        assert list(config.workers) == FULL_CATALOGUE
        assert config.catalogue == first.instance_created.config.catalogue
        basic = (await running.stub.GetInstance(pb.GetInstanceRequest(id="a"))).instance.config
        assert [(worker.name, worker.instructions) for worker in basic.workers] == [
            (worker.name, "") for worker in FULL_CATALOGUE
        ]


@pytest.mark.parametrize("ends", [True, False])
async def test_lists_and_batches_only_name_the_catalogue(ends: bool, tmp_path: Path) -> None:
    provider = Scripted(subtasks=1) if ends else Scripted(never)
    async with service(tmp_path / "log.db", provider, workers=FULL_CATALOGUE) as running:
        requests = [pb.CreateInstanceRequest(prompt="x", id=f"i{number}") for number in range(100)]
        batch = await running.stub.BatchCreateInstances(pb.BatchCreateInstancesRequest(requests=requests))
        if ends:
            await asyncio.gather(*(running.ended(request.id) for request in requests))
        listed = await running.stub.ListInstances(pb.ListInstancesRequest(page_size=100))
        for shown in (*batch.instances, *listed.instances):
            assert (len(shown.config.workers), len(shown.config.catalogue)) == (0, 64)
            assert shown.ByteSize() < 1000
        assert len(listed.instances) == 100


async def test_an_instance_keeps_its_catalogue_through_all_actions_until_it_is_cleared(
    tmp_path: Path,
) -> None:
    asked: list[ModelRequest] = []

    def script(request: ModelRequest) -> Answer:
        asked.append(request)
        return plan_text(1).replace('"worker": ""', '"worker": "coder"') if planning(request) else "done"

    def models() -> list[str]:
        found = [request.model for request in asked if request.prompt.role == "work"]
        asked.clear()
        return found

    def coder(model: str) -> list[instance_pb2.Worker]:
        return [instance_pb2.Worker(name="coder", model=f"scripted/{model}")]

    async with service(tmp_path / "log.db", Scripted(script), workers=coder("early")) as running:
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
        await running.ended("a")
        assert models() == ["early"]
    async with service(tmp_path / "log.db", Scripted(script), workers=coder("late")) as running:
        await running.stub.RestartInstance(pb.RestartInstanceRequest(id="a"))
        await running.ended("a")
        assert models() == ["early"]
        for stage in (pb.STAGE_PLAN, pb.STAGE_SUBTASKS):
            request = pb.ForkInstanceRequest(id="a", new_id=f"f{stage}", stage=stage)
            await running.stub.ForkInstance(request)
            await running.ended(f"f{stage}")
            assert models() == ["early"]
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="b"))
        await running.ended("b")
        assert models() == ["late"]
        mask = {"paths": ["workers"]}
        restarted = await running.stub.RestartInstance(pb.RestartInstanceRequest(id="a", update_mask=mask))
        assert list(restarted.instance.config.workers) == coder("late")
        await running.ended("a")
        assert models() == ["late"]
        own = instance_pb2.InstanceConfig(workers=coder("own"))
        await running.stub.RestartInstance(pb.RestartInstanceRequest(id="a", config=own))
        ended = await running.ended("a")
        assert models() == ["own"]
        assert (list(ended.instance.config.workers), ended.instance.config.catalogue) == (coder("own"), "")


async def test_models_of_a_named_catalogue_are_validated_like_a_clients_own(tmp_path: Path) -> None:
    gone = [instance_pb2.Worker(name="coder", model="nobody/knows")]
    async with service(tmp_path / "log.db", Scripted(), workers=gone) as running:
        refusal = await refused(running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a")))
        assert (refusal.info.reason, refusal.field) == ("CONFIG_INVALID", "config.workers[0].model")
        own = instance_pb2.InstanceConfig(workers=[instance_pb2.Worker(name="mine")])
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", config=own))
        await running.ended("a")
        mask = {"paths": ["workers"]}
        restart = pb.RestartInstanceRequest(id="a", update_mask=mask)
        refusal = await refused(running.stub.RestartInstance(restart))
        assert (refusal.info.reason, refusal.field) == ("CONFIG_INVALID", "config.workers[0].model")


OWN_PLAN = [instance_pb2.Subtask(id="mine", instructions="Do it.")]


async def test_an_instance_with_its_own_plan_is_restarted_and_forked_without_it(running: Service) -> None:
    own = instance_pb2.InstanceConfig(subtasks=OWN_PLAN, budget={"max_tokens": 10_000})
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="p", id="a", config=own))
    assert [subtask.id for subtask in (await running.ended("a")).instance.subtasks] == ["mine"]
    mask = {"paths": ["subtasks"]}
    forked = await running.stub.ForkInstance(
        pb.ForkInstanceRequest(id="a", new_id="b", stage=pb.STAGE_PLAN, update_mask=mask)
    )
    restarted = await running.stub.RestartInstance(pb.RestartInstanceRequest(id="a", update_mask=mask))
    for config in (forked.instance.config, restarted.instance.config):
        assert (len(config.subtasks), config.budget.max_tokens) == (0, 10_000)
    for name in ("a", "b"):
        ended = (await running.ended(name)).instance
        assert [subtask.id for subtask in ended.subtasks] == ["t1", "t2", "t3"]
        assert ended.state == instance_pb2.STATE_COMPLETE


async def test_a_retry_can_clear_the_limit_that_stopped_the_instance(tmp_path: Path) -> None:
    def answer(request: ModelRequest) -> Answer:
        text = plan_text(2) if planning(request) else "an answer"
        return ModelReply(text, input_tokens=100, output_tokens=200)

    async with service(tmp_path / "log.db", Scripted(answer)) as running:
        await _take_a_limit_away(running)


async def _take_a_limit_away(running: Service) -> None:
    tight = instance_pb2.InstanceConfig(budget={"max_tokens": 1}, instructions="In German")
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="p", id="a", config=tight))
    assert (await running.ended("a")).instance.error.reason == "BUDGET_EXCEEDED"
    changes = instance_pb2.InstanceConfig(max_subtasks=20, max_parallel_subtasks=1)
    mask = {"paths": ["budget", "instructions", "max_subtasks"]}
    await running.stub.RetryInstance(pb.RetryInstanceRequest(id="a", config=changes, update_mask=mask))
    ended = (await running.ended("a")).instance
    assert ended.state == instance_pb2.STATE_COMPLETE
    assert not ended.config.HasField("budget")
    assert not ended.config.HasField("instructions")
    assert (ended.config.max_subtasks, ended.config.max_parallel_subtasks) == (20, 8)


@pytest.mark.parametrize("path", ["prompt", "budget.maxTokens", "workers.name", "", "catalogue"])
@pytest.mark.parametrize("action", ["Retry", "Restart", "Fork"])
async def test_a_mask_with_an_unknown_path_is_rejected_with_the_known_ones(
    action: str, path: str, running: Service
) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="p", id="a"))
    await running.ended("a")
    request = getattr(pb, f"{action}InstanceRequest")(id="a", update_mask={"paths": ["subtasks", path]})
    refusal = await refused(getattr(running.stub, f"{action}Instance")(request))
    assert (refusal.code, refusal.info.reason) == ("INVALID_ARGUMENT", "CONFIG_INVALID")
    assert refusal.field == "update_mask"
    assert refusal.message.startswith(
        f"update_mask names {path!r}, which is no field of config: those are *, big"
    )
    assert "budget.max_tokens" in refusal.message


async def test_an_instance_without_a_plan_cannot_be_forked_after_planning(stuck: Service) -> None:
    await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    refusal = await refused(stuck.stub.ForkInstance(pb.ForkInstanceRequest(id="a", stage=pb.STAGE_SUBTASKS)))
    assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "STATE_FORBIDS")
    assert refusal.info.metadata["action"] == "fork"


async def test_deleting_removes_the_instance_and_its_events(running: Service) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", request_id="k"))
    await running.ended("a")
    await running.stub.DeleteInstance(pb.DeleteInstanceRequest(id="a"))
    for call in (
        running.stub.GetInstance(pb.GetInstanceRequest(id="a")),
        running.stub.DeleteInstance(pb.DeleteInstanceRequest(id="a")),
        running.stub.RetryInstance(pb.RetryInstanceRequest(id="a")),
        running.stub.WaitInstance(pb.WaitInstanceRequest(id="a")),
    ):
        assert (await refused(call)).info.reason == "INSTANCE_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(running, "a")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert not (await running.stub.ListInstances(pb.ListInstancesRequest())).instances
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", request_id="k"))


async def test_a_running_instance_cannot_be_deleted(stuck: Service) -> None:
    await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    refusal = await refused(stuck.stub.DeleteInstance(pb.DeleteInstanceRequest(id="a")))
    assert (refusal.code, refusal.info.metadata["action"]) == ("FAILED_PRECONDITION", "delete")
    await stuck.stub.GetInstance(pb.GetInstanceRequest(id="a"))


async def test_a_batch_is_created_atomically(running: Service) -> None:
    requests = [pb.CreateInstanceRequest(prompt="x", id=f"i{number}") for number in range(100)]
    answer = await running.stub.BatchCreateInstances(pb.BatchCreateInstancesRequest(requests=requests))
    assert [instance.id for instance in answer.instances] == [request.id for request in requests]
    for request in requests:
        assert (await running.ended(request.id)).status.status == "complete"
    for bad, reason, field in (
        (pb.CreateInstanceRequest(prompt=" "), "PROMPT_EMPTY", "requests[1].prompt"),
        (pb.CreateInstanceRequest(prompt="x", id="i7"), "INSTANCE_ALREADY_EXISTS", "id"),
        (
            pb.CreateInstanceRequest(prompt="x", config={"big_model": "nobody/knows"}),
            "CONFIG_INVALID",
            "requests[1].config.big_model",
        ),
    ):
        batch = pb.BatchCreateInstancesRequest(requests=[pb.CreateInstanceRequest(prompt="x", id="new"), bad])
        refusal = await refused(running.stub.BatchCreateInstances(batch))
        assert refusal.info.reason == reason
        assert refusal.field == field
        gone = running.stub.GetInstance(pb.GetInstanceRequest(id="new"))
        assert (await refused(gone)).info.reason == "INSTANCE_NOT_FOUND"


async def test_a_repeated_batch_returns_the_first_instances(running: Service) -> None:
    requests = [pb.CreateInstanceRequest(prompt="x", request_id=f"k{number}") for number in range(3)]
    batch = pb.BatchCreateInstancesRequest(requests=requests)
    first = await running.stub.BatchCreateInstances(batch)
    again = await running.stub.BatchCreateInstances(batch)
    assert [instance.id for instance in again.instances] == [instance.id for instance in first.instances]


@pytest.mark.parametrize("size", [0, 101])
async def test_a_batch_is_bounded(running: Service, size: int) -> None:
    requests = [pb.CreateInstanceRequest(prompt="x")] * size
    call = running.stub.BatchCreateInstances(pb.BatchCreateInstancesRequest(requests=requests))
    assert (await refused(call)).field == "requests"


async def test_a_budget_in_dollars_needs_known_prices(running: Service) -> None:
    request = pb.CreateInstanceRequest(prompt="x", config={"budget": {"max_cost_usd": 1}})
    refusal = await refused(running.stub.CreateInstance(request))
    assert refusal.field == "config.budget.max_cost_usd"
    assert "no price of scripted/big is known" in refusal.message


async def test_ten_thousand_instances_are_listed_once_each_while_others_are_created(stuck: Service) -> None:
    async def create(numbers: range) -> None:
        for start in range(numbers.start, numbers.stop, 100):
            requests = [
                pb.CreateInstanceRequest(prompt="x", id=f"i{number}") for number in range(start, start + 100)
            ]
            await stuck.stub.BatchCreateInstances(pb.BatchCreateInstancesRequest(requests=requests))

    await create(range(9_000))
    meanwhile = asyncio.create_task(create(range(9_000, 10_000)))
    seen: list[str] = []
    token = ""
    while True:
        page = await stuck.stub.ListInstances(pb.ListInstancesRequest(page_size=500, page_token=token))
        seen += [instance.id for instance in page.instances]
        token = page.next_page_token
        if not token:
            break
    await meanwhile
    assert len(seen) == len(set(seen))
    assert {f"i{number}" for number in range(9_000)} <= set(seen)
    numbers = [int(name[1:]) for name in seen]
    assert numbers == sorted(numbers, reverse=True)


async def test_health_is_the_standard_one(running: Service) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        for name in ("", "orchestrator.v1.Orchestrator"):
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=name)
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_two_services_do_not_share_a_port(running: Service) -> None:
    other = OrchestratorService(running.engine, running.log, instance_pb2.InstanceConfig())
    with pytest.raises(SettingsError, match=r"ORCHESTRATOR_GRPC_ADDRESS is .* cannot be had"):
        async with serving(other, running.log.notifier, running.address):
            pass


async def buf(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode()


async def test_a_foreign_client_discovers_the_service_by_reflection(running: Service) -> None:
    url = f"http://{running.address}"
    service_url = f"{url}/orchestrator.v1.Orchestrator"
    assert "orchestrator.v1.Orchestrator" in (await buf("--list-services", url)).split()
    assert "orchestrator.v1.Orchestrator/CreateInstance" in await buf("--list-methods", url)
    created = await buf("-d", '{"prompt":"x","id":"foreign"}', f"{service_url}/CreateInstance")
    assert json.loads(created)["id"] == "foreign"
    streamed = await buf("-d", '{"id":"foreign"}', f"{service_url}/StreamEvents")
    assert '"instanceCompleted"' in streamed
    assert '"STATE_COMPLETE"' in streamed


async def test_an_action_can_be_conditional_on_the_sequence_the_client_has_seen(
    stuck: Service,
) -> None:
    created = await stuck.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    while (shown := (await stuck.stub.GetInstance(pb.GetInstanceRequest(id="a"))).instance).last_sequence < 2:
        pass
    assert shown.last_sequence == 2  # planning has started since
    stale = pb.TerminateInstanceRequest(id="a", expected_sequence=created.instance.last_sequence)
    refusal = await refused(stuck.stub.TerminateInstance(stale))
    assert (refusal.code, refusal.info.reason) == ("ABORTED", "SEQUENCE_MISMATCH")
    assert refusal.info.metadata == {"last_sequence": "2"}
    assert "was expected at event 1 and is at event 2" in refusal.message
    paused = await stuck.stub.PauseInstance(pb.PauseInstanceRequest(id="a", expected_sequence=2))
    assert paused.instance.state == instance_pb2.STATE_WAITING_FOR_PAUSE
    for request in (
        pb.ResumeInstanceRequest(id="a", expected_sequence=2),
        pb.TerminateInstanceRequest(id="a", expected_sequence=2),
        pb.RetryInstanceRequest(id="a", expected_sequence=2),
        pb.RestartInstanceRequest(id="a", expected_sequence=2),
        pb.ReviewPlanRequest(id="a", expected_sequence=2, decision=event_pb2.DECISION_APPROVE),
    ):
        method = getattr(stuck.stub, type(request).__name__.removesuffix("Request"))
        assert (await refused(method(request))).info.reason == "SEQUENCE_MISMATCH"
    await stuck.stub.TerminateInstance(pb.TerminateInstanceRequest(id="a"))  # whatever has happened


async def test_deletions_are_reported_at_their_position_among_all_events(running: Service) -> None:
    for name, team in (("a", "red"), ("b", "blue")):
        await running.stub.CreateInstance(
            pb.CreateInstanceRequest(prompt="x", id=name, labels={"team": team})
        )
        await running.ended(name)
        await running.stub.DeleteInstance(pb.DeleteInstanceRequest(id=name))
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="c"))
    last = await running.ended("c")

    async def deletions(**options: object) -> list[tuple[str, int]]:
        request = pb.StreamAllEventsRequest(follow=False, **options)
        found = []
        async for message in running.stub.StreamAllEvents(request):
            found += [(event.instance_id, 0) for event in message.batch.events]
            if message.HasField("deleted"):
                found.append((message.deleted.instance_id, message.deleted.position))
        return found

    everything = await deletions()
    (a, first), (b, second) = everything[:2]
    assert (a, b) == ("a", "b")
    assert 0 < first < second
    assert everything[2:] == [("c", 0)] * last.instance.last_sequence
    assert await deletions(after_position=first) == everything[1:]
    assert await deletions(after_position=second) == everything[2:]
    assert await deletions(labels=["team=blue"]) == [("b", second)]


async def test_events_name_the_request_that_caused_them(stuck: Service) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await stuck.stub.CreateInstance(
        pb.CreateInstanceRequest(prompt="x", id="a"),
        metadata=(("x-request-id", "first"), ("traceparent", trace)),
    )
    await stuck.stub.TerminateInstance(
        pb.TerminateInstanceRequest(id="a"),
        metadata=(("x-request-id", "x" * 300), ("traceparent", "00-nonsense")),
    )
    events = events_for(await stream(stuck, "a"))
    origins = [(event.request_id, event.trace_parent, event.actor) for event in events]
    assert origins == [("first", trace, ""), ("", "", ""), ("", "", "")]
    assert {event.schema for event in events} == {1}


async def test_building_a_long_page_of_a_list_does_not_block_other_calls(
    stuck: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [pb.CreateInstanceRequest(prompt="x", id=f"i{number}") for number in range(100)]
    for _ in range(2):
        await stuck.stub.BatchCreateInstances(pb.BatchCreateInstancesRequest(requests=requests))
        for request in requests:
            request.id = f"j{request.id}"
    shown = 0
    turns: list[int] = []
    show = view.instance

    def counting(state: Instance, **options: Any) -> instance_pb2.Instance:
        nonlocal shown
        shown += 1
        return show(state, **options)

    async def take_turns() -> None:
        while True:
            turns.append(shown)
            await asyncio.sleep(0)

    monkeypatch.setattr(view, "instance", counting)
    watching = asyncio.create_task(take_turns())
    page = await stuck.stub.ListInstances(pb.ListInstancesRequest(page_size=1000))
    watching.cancel()
    assert len(page.instances) == 200
    assert max(after - before for before, after in pairwise([*turns, shown])) <= 50
