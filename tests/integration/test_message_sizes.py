"""No message is larger than its client takes: gRPC's usual 4 MiB, or the limit in its metadata."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.service import Service, service

from orchestrator.client import Client
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Scripted, plan_text
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub

DEFAULT_MAX_BYTES = 4 * 1024 * 1024
MOST = (("max-response-bytes", str(64 * 1024 * 1024)),)
OUTPUT = "🦙" * (5 * 256 * 1024)
"""5 MiB, in characters of four bytes."""
RESULT = "r" * 6 * 1024 * 1024
UNMERGED = instance_pb2.InstanceConfig(max_input_characters=10_000_000)
ONCE = pb.CreateInstanceRequest(prompt="x", id="large", request_id="once", config=UNMERGED)


def answer(request: ModelRequest) -> str:
    """Two subtasks with a large and a small output, and a large result."""
    match request.prompt.role:
        case "planning":
            return plan_text(2)
        case "work":
            return OUTPUT if request.prompt.subtask_id == "t1" else "small"
        case "synthesis":
            return RESULT


def own_plan() -> instance_pb2.InstanceConfig:
    """A plan of the client's own of 4 MiB."""
    subtasks = [instance_pb2.Subtask(id=f"t{number}", instructions="x" * 64 * 1024) for number in range(64)]
    return instance_pb2.InstanceConfig(max_subtasks=64, subtasks=subtasks)


@pytest.fixture
async def large(tmp_path: Path) -> AsyncIterator[Service]:
    """A service with an instance `large` that is complete; its stub takes 4 MiB."""
    async with service(tmp_path / "log.db", Scripted(answer)) as running:
        await running.stub.CreateInstance(ONCE)
        async with Client(running.address) as client:
            await client.wait("large")
        yield running


@pytest.fixture
async def large_limit(large: Service) -> AsyncIterator[OrchestratorStub]:
    """A stub that takes more, if it is asked to."""
    options = [("grpc.max_receive_message_length", 64 * 1024 * 1024)]
    async with grpc.aio.insecure_channel(large.address, options=options) as channel:
        yield OrchestratorStub(channel)


async def refused(call: Any) -> tuple[str, str, error_details_pb2.ErrorInfo]:
    """Code, message and info of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status, "the service's own words, not gRPC's"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code().name, status.message, info


READS: dict[str, Callable[[OrchestratorStub], Callable[..., Any]]] = {
    "GetInstance": lambda stub: lambda **how: stub.GetInstance(pb.GetInstanceRequest(id="large"), **how),
    "GetInstance in full": lambda stub: (
        lambda **how: stub.GetInstance(pb.GetInstanceRequest(id="large", view=pb.VIEW_FULL), **how)
    ),
    "WaitInstance": lambda stub: (
        lambda **how: stub.WaitInstance(pb.WaitInstanceRequest(id="large", timeout=Duration()), **how)
    ),
    "GetResult": lambda stub: lambda **how: stub.GetResult(pb.GetResultRequest(id="large"), **how),
}


@pytest.mark.parametrize("name", READS)
async def test_a_response_that_is_too_large_is_rejected_with_the_alternative(
    large: Service, large_limit: OrchestratorStub, name: str
) -> None:
    code, message, info = await refused(READS[name](large.stub)())
    assert (code, info.reason) == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
    assert int(info.metadata["size_bytes"]) > DEFAULT_MAX_BYTES
    assert info.metadata["max_response_bytes"] == str(DEFAULT_MAX_BYTES)
    for way in ("max-response-bytes", "REST"):
        assert way in message
    assert ("GetResult" in message) == (name != "GetResult")
    whole = await READS[name](large_limit)(metadata=MOST)
    assert whole.ByteSize() == int(info.metadata["size_bytes"])


async def test_a_result_that_fits_is_read_where_the_status_does_not(tmp_path: Path) -> None:
    def small_result(request: ModelRequest) -> str:
        return "# Short" if request.prompt.role == "synthesis" else answer(request)

    async with service(tmp_path / "log.db", Scripted(small_result)) as running:
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="large"))
        async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="large")):
            assert message.ByteSize() <= DEFAULT_MAX_BYTES
        assert (await refused(READS["GetInstance"](running.stub)()))[2].reason == "RESPONSE_TOO_LARGE"
        assert (await READS["GetResult"](running.stub)()).data == b"# Short"


async def test_lists_forks_and_steering_have_small_responses(large: Service) -> None:
    (listed,) = (await large.stub.ListInstances(pb.ListInstancesRequest())).instances
    assert listed.state == instance_pb2.STATE_COMPLETE
    assert listed.final_result == ""
    assert [subtask.output for subtask in listed.subtasks] == ["", ""]
    fork = pb.ForkInstanceRequest(id="large", new_id="fork", stage=pb.STAGE_SYNTHESIS)
    assert (await large.stub.ForkInstance(fork)).instance.forked_from == "large"
    again = await large.stub.RestartInstance(pb.RestartInstanceRequest(id="large"))
    assert again.instance.id == "large"


async def test_a_repeated_creation_is_answered_without_outputs_that_do_not_fit(
    large: Service, large_limit: OrchestratorStub
) -> None:
    again = await large.stub.CreateInstance(ONCE)
    assert (again.id, again.details.status) == ("large", "complete")
    assert not again.details.HasField("output")
    whole = await large_limit.CreateInstance(ONCE, metadata=MOST)
    assert whole.details.output.final_result == RESULT


@pytest.mark.parametrize("after", [0, 3])
async def test_an_event_that_is_too_large_is_cut_and_blocks_no_stream(large: Service, after: int) -> None:
    events: list[event_pb2.Event] = []
    async for message in large.stub.StreamEvents(pb.StreamEventsRequest(id="large", after_sequence=after)):
        assert message.ByteSize() <= DEFAULT_MAX_BYTES
        events += message.batch.events
    assert [event.sequence for event in events] == list(range(after + 1, events[-1].sequence + 1))
    cut = {event.WhichOneof("payload"): event for event in events if event.omitted_bytes}
    assert cut.keys() == {"subtask_completed", "synthesis_completed"}
    output = cut["subtask_completed"].subtask_completed.output
    assert OUTPUT.startswith(output)
    assert cut["subtask_completed"].omitted_bytes == len(OUTPUT.encode()) - len(output.encode())
    assert cut["subtask_completed"].ByteSize() > DEFAULT_MAX_BYTES - 100, "no more is missing than has to"
    result = cut["synthesis_completed"].synthesis_completed.final_result
    assert cut["synthesis_completed"].omitted_bytes == len(RESULT) - len(result)
    assert events[-1].WhichOneof("payload") == "instance_completed"


async def test_the_stream_of_all_continues_after_an_event_that_is_too_large(large: Service) -> None:
    seen: list[tuple[str, int]] = []
    position = 0
    async for message in large.stub.StreamAllEvents(pb.StreamAllEventsRequest(follow=False)):
        assert message.ByteSize() <= DEFAULT_MAX_BYTES
        if message.HasField("batch"):
            seen += [(event.instance_id, event.sequence) for event in message.batch.events]
            assert message.batch.last_position == position + len(message.batch.events)
            position = message.batch.last_position
    assert seen == [("large", sequence) for sequence in range(1, len(seen) + 1)]


async def test_a_client_with_a_larger_limit_gets_complete_events(
    large: Service, large_limit: OrchestratorStub
) -> None:
    request = pb.StreamEventsRequest(id="large")
    events = [
        event
        async for message in large_limit.StreamEvents(request, metadata=MOST)
        for event in message.batch.events
    ]
    outputs = {event.subtask_completed.output for event in events if event.HasField("subtask_completed")}
    assert outputs == {OUTPUT, "small"}
    assert not any(event.omitted_bytes for event in events)
    async with Client(large.address) as client:
        assert [event async for event in client.stream_events("large")] == events
        assert (await client.get("large", full=True)).instance.final_result == RESULT


async def test_live_text_arrives_in_pieces_that_fit(tmp_path: Path) -> None:
    written = asyncio.Event()

    async def pieces() -> AsyncIterator[str]:
        yield OUTPUT
        written.set()
        await asyncio.Event().wait()

    def slow(request: ModelRequest) -> Any:
        return pieces() if request.prompt.role == "work" else plan_text(1)

    async with service(tmp_path / "log.db", Scripted(slow)) as running:
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
        await written.wait()
        call = running.stub.StreamEvents(pb.StreamEventsRequest(id="a", include_deltas=True))
        said = ""
        async for message in call:
            assert message.ByteSize() <= DEFAULT_MAX_BYTES
            assert not message.HasField("delta") or message.delta.offset == len(said)
            said += message.delta.text
            if len(said) == len(OUTPUT):
                break
        call.cancel()
    assert said == OUTPUT


async def test_server_sent_events_are_complete_whatever_limit_a_client_has(large: Service) -> None:
    said = b""
    async for message in large.stub.StreamServerSentEvents(pb.StreamServerSentEventsRequest(id="large")):
        assert message.ByteSize() <= DEFAULT_MAX_BYTES
        said += message.data
    assert said.endswith(b"\n\n")
    assert OUTPUT.encode() in said
    assert RESULT.encode() in said
    assert b"omittedBytes" not in said


@pytest.mark.parametrize("prompt_bytes", [1, 256 * 1024])
async def test_a_batch_of_large_plans_is_answered_with_what_was_created(
    tmp_path: Path, prompt_bytes: int
) -> None:
    labels = {f"{number:02}".ljust(63, "k"): "v" * 256 for number in range(64)}
    small = own_plan()
    for subtask in small.subtasks:
        subtask.instructions = "x"
        subtask.title = "t" * 200
    requests = [
        pb.CreateInstanceRequest(prompt="x" * prompt_bytes, id=f"i{number}", labels=labels, config=small)
        for number in range(100)
    ]
    async with service(tmp_path / "log.db", Scripted(), max_active=1) as running:
        batch = pb.BatchCreateInstancesRequest(requests=requests)
        answered = await running.stub.BatchCreateInstances(batch)
        assert answered.ByteSize() <= DEFAULT_MAX_BYTES
        assert [each.id for each in answered.instances] == [request.id for request in requests]
        shown = [instance.id async for page in pages(running.stub) for instance in page.instances]
        assert shown == [request.id for request in reversed(requests)]


async def test_an_instance_with_a_large_plan_of_the_client_is_listed_and_streamed(tmp_path: Path) -> None:
    async with service(tmp_path / "log.db", Scripted()) as running:
        request = pb.CreateInstanceRequest(prompt="x" * 256 * 1024, id="a", config=own_plan())
        created = (await running.stub.CreateInstance(request)).instance
        assert len(created.config.subtasks) == 64
        assert not any(subtask.instructions for subtask in created.config.subtasks)
        (listed,) = (await running.stub.ListInstances(pb.ListInstancesRequest())).instances
        assert (listed.prompt, listed.prompt_is_cut) == ("x" * 4096, True)
        stream = running.stub.StreamEvents(pb.StreamEventsRequest(id="a"))
        first = await anext(aiter(stream))
        (event,) = first.batch.events[:1]
        assert event.omitted_bytes > 0
        assert len(event.instance_created.prompt) > 4096
        stream.cancel()
        await running.ended("a")
        again = await running.stub.RestartInstance(pb.RestartInstanceRequest(id="a"))
        assert again.instance.last_sequence > created.last_sequence


async def pages(stub: OrchestratorStub) -> AsyncIterator[pb.ListInstancesResponse]:
    request = pb.ListInstancesRequest(page_size=1000)
    while True:
        page = await stub.ListInstances(request)
        assert page.ByteSize() <= DEFAULT_MAX_BYTES
        yield page
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return


async def test_a_page_ends_before_it_is_too_large(tmp_path: Path) -> None:
    labels = {f"{number:02}".ljust(63, "k"): "😀" * 256 for number in range(64)}
    async with service(tmp_path / "log.db", Scripted(), max_active=1) as running:
        for number in range(60):
            request = pb.CreateInstanceRequest(prompt="x", id=f"i{number}", labels=labels)
            await running.stub.CreateInstance(request)
        found = [page async for page in pages(running.stub)]
        assert len(found) == 3, "of 70 KB an instance, 2 MiB a page"
        shown = [instance.id for page in found for instance in page.instances]
        assert shown == [f"i{number}" for number in reversed(range(60))]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("said", "takes"),
    [
        ("0", DEFAULT_MAX_BYTES),
        ("1", DEFAULT_MAX_BYTES),
        ("4194304", DEFAULT_MAX_BYTES),
        ("5000000", 5_000_000),
        ("9" * 5000, 64 * 1024 * 1024),
    ],
)
async def test_a_client_sends_its_message_limit(large_limit: OrchestratorStub, said: str, takes: int) -> None:
    metadata = (("max-response-bytes", said),)
    cut = [
        message.ByteSize()
        async for message in large_limit.StreamEvents(pb.StreamEventsRequest(id="large"), metadata=metadata)
        if any(event.omitted_bytes for event in message.batch.events)
    ]
    if takes > 2 * DEFAULT_MAX_BYTES:
        assert cut == []
        return
    assert cut
    assert all(takes - 100 < size <= takes for size in cut)
    _, _, info = await refused(READS["GetResult"](large_limit)(metadata=metadata))
    assert info.metadata["max_response_bytes"] == str(takes)


@pytest.mark.parametrize("said", ["", "lots", "-1", "1e9", "64MiB", "4194304.0", "0x10", "1 000", "+5"])
async def test_an_invalid_number_of_bytes_is_rejected_before_any_work(large: Service, said: str) -> None:
    metadata = (("max-response-bytes", said),)
    request = pb.CreateInstanceRequest(prompt="x", id="new")
    for call in (
        large.stub.CreateInstance(request, metadata=metadata),
        first_of(large.stub.StreamEvents(pb.StreamEventsRequest(id="large"), metadata=metadata)),
        first_of(large.stub.StreamAllEvents(pb.StreamAllEventsRequest(), metadata=metadata)),
    ):
        code, message, info = await refused(call)
        assert (code, info.reason) == ("INVALID_ARGUMENT", "CONFIG_INVALID")
        assert "max-response-bytes" in message
    assert (await refused(large.stub.GetInstance(pb.GetInstanceRequest(id="new"))))[0] == "NOT_FOUND"


async def first_of(call: Any) -> object:
    return await anext(aiter(call))


async def test_a_message_over_64_mib_is_rejected_for_every_client(tmp_path: Path) -> None:
    huge = "x" * 33 * 1024 * 1024

    def two(request: ModelRequest) -> str:
        return {"planning": plan_text(1), "work": huge, "synthesis": huge}[request.prompt.role]

    async with service(tmp_path / "log.db", Scripted(two)) as running, Client(running.address) as client:
        await client.create("x", instance_id="large")
        kinds = [event.WhichOneof("payload") async for event in client.stream_events("large")]
        assert kinds[-1] == "instance_completed"
        code, message, _ = await refused(READS["GetInstance"](running.stub)(metadata=MOST))
        assert code == "RESOURCE_EXHAUSTED"
        assert "GetResult" in message
        assert "max-response-bytes" not in message, "more of it does not help"
