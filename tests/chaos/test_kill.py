"""Kill -9 at each stage, then a start on the same database."""

from pathlib import Path

import pytest
from support.endpoint import Answer, Call, Endpoint, Role, hang
from support.process import on_endpoint, process

from orchestrator.client import Client
from orchestrator.v1 import event_pb2, instance_pb2


class Stage:
    """An endpoint that hangs at one stage until the test lets it continue."""

    def __init__(self, role: Role, *, but_not: str = "") -> None:
        self.role = role
        self.but_not = but_not
        self.is_stuck = True

    def __call__(self, call: Call) -> Answer:
        spared = self.but_not and call.subtask_id == self.but_not
        return hang if self.is_stuck and call.role == self.role and not spared else None


async def events_for(client: Client, instance_id: str) -> list[event_pb2.Event]:
    return [event async for event in client.stream_events(instance_id)]


async def wait_for_kinds(client: Client, instance_id: str, kinds: list[str]) -> list[event_pb2.Event]:
    """The events up to where all of these kinds have been seen, in whatever order."""
    events: list[event_pb2.Event] = []
    missing = list(kinds)
    async for event in client.stream_events(instance_id):
        events.append(event)
        if (kind := event.WhichOneof("payload")) in missing:
            missing.remove(kind)
        if not missing:
            break
    return events


@pytest.mark.parametrize(
    ("stage", "until", "planning", "synthesis"),
    [
        (Stage("planning"), ["planning_started"], 2, 1),
        (Stage("work", but_not="t2"), ["subtask_started"] * 3 + ["subtask_completed"], 1, 1),
        (Stage("synthesis"), ["synthesis_started"], 1, 2),
    ],
    ids=["planning", "with some subtasks done", "synthesising"],
)
async def test_an_instance_killed_at_any_stage_completes_and_pays_for_nothing_twice(
    stage: Stage, until: list[str], planning: int, synthesis: int, tmp_path: Path
) -> None:
    async with (
        Endpoint(stage, subtasks=3) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        async with Client(service.grpc_address) as client:
            await client.create("Build it", instance_id="a")
            before = await wait_for_kinds(client, "a", until)
            await endpoint.wait_for_calls({"planning": 1, "work": 4, "synthesis": 5}[stage.role])
        await service.kill()
        stage.is_stuck = False
        await service.start()
        async with Client(service.grpc_address) as client:
            answer = await client.wait("a", timeout_s=30)
            events = await events_for(client, "a")
    assert answer.instance.state == instance_pb2.STATE_COMPLETE
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[: len(before)] == before
    assert endpoint.count("planning") == planning
    assert endpoint.count("synthesis") == synthesis
    for subtask_id in ("t1", "t2", "t3"):
        was_stuck = stage.role == "work" and subtask_id != stage.but_not
        assert endpoint.count("work", subtask_id) == (2 if was_stuck else 1)
    interrupted = [event for event in events if "failed" in str(event.WhichOneof("payload"))]
    assert len(interrupted) == (2 if stage.but_not else 1)
    for event in interrupted:
        payload = getattr(event, str(event.WhichOneof("payload")))
        assert payload.error.reason == "INTERRUPTED"
        assert payload.HasField("retry_time")


async def test_acknowledged_writes_survive_an_immediate_kill(tmp_path: Path) -> None:
    stage = Stage("planning")
    async with (
        Endpoint(stage) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url), ORCHESTRATOR_MAX_CRASHES="100") as service,
    ):
        for number in range(5):
            async with Client(service.grpc_address) as client:
                await client.create("Build it", instance_id=f"i{number}")
            await service.kill()
            await service.start()
        stage.is_stuck = False
        await service.kill()
        await service.start()
        async with Client(service.grpc_address) as client:
            for number in range(5):
                answer = await client.wait(f"i{number}", timeout_s=30)
                assert answer.instance.state == instance_pb2.STATE_COMPLETE


async def test_a_reader_resumes_automatically_across_a_kill(tmp_path: Path) -> None:
    stage = Stage("synthesis")
    async with (
        Endpoint(stage) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("Build it", instance_id="a")
        sequences = []
        async for event in client.stream_events("a"):
            sequences.append(event.sequence)
            if event.WhichOneof("payload") == "synthesis_started" and stage.is_stuck:
                stage.is_stuck = False
                await service.kill()
                await service.start()
        assert sequences == list(range(1, len(sequences) + 1))
        assert (await client.get("a")).instance.state == instance_pb2.STATE_COMPLETE
