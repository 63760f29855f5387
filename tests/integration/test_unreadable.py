"""One instance that cannot be read: it is shown as what it is, and everything else goes on."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.histories import History
from support.logs import create
from support.service import Service
from support.service import service as service_on

from orchestrator.client import Client, Unreadable
from orchestrator.log.base import encode_row
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.scripted import Scripted
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.event_pb2 import Event, InstancePauseRequested

Damage = Callable[[sqlite3.Connection, int], None]

_DATA = "SELECT data FROM event WHERE instance = ? AND sequence = 2"
_SET = "UPDATE event SET data = ? WHERE instance = ? AND sequence = 2"


def flipped_byte(connection: sqlite3.Connection, key: int) -> None:
    ((data,),) = connection.execute(_DATA, (key,))
    place = data.index(b"bad") - 2  # the tag of its id
    connection.execute(_SET, (data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :], key))


def flipped_length(connection: sqlite3.Connection, key: int) -> None:
    ((data,),) = connection.execute(_DATA, (key,))
    connection.execute(_SET, (data[:1] + bytes([data[1] ^ 0x10]) + data[2:], key))


def empty_event(connection: sqlite3.Connection, key: int) -> None:
    connection.execute(_SET, (b"", key))


def missing_event(connection: sqlite3.Connection, key: int) -> None:
    connection.execute("DELETE FROM event WHERE instance = ? AND sequence = 2", (key,))


def missing_first(connection: sqlite3.Connection, key: int) -> None:
    connection.execute("DELETE FROM event WHERE instance = ? AND sequence = 1", (key,))


def missing_last(connection: sqlite3.Connection, key: int) -> None:
    connection.execute("DELETE FROM event WHERE instance = ? AND sequence > 2", (key,))


def foreign_event(connection: sqlite3.Connection, key: int) -> None:
    event = Event(instance_id="good", sequence=2, instance_pause_requested=InstancePauseRequested())
    connection.execute(_SET, (encode_row(event), key))


def illegal_event(connection: sqlite3.Connection, key: int) -> None:
    event = Event(instance_id="bad", sequence=2)
    event.instance_resumed.SetInParent()
    connection.execute(_SET, (encode_row(event), key))


def newer_schema(connection: sqlite3.Connection, key: int) -> None:
    event = Event(instance_id="bad", sequence=2, schema=99, instance_pause_requested=InstancePauseRequested())
    connection.execute(_SET, (encode_row(event), key))


def newer_type(connection: sqlite3.Connection, key: int) -> None:
    event = Event(instance_id="bad", sequence=2).SerializeToString() + b"\xa2\x3f\x00"  # field 1012
    connection.execute(_SET, (b"\x0a" + bytes([len(event)]) + event, key))


CORRUPT: list[Damage] = [
    flipped_byte,
    flipped_length,
    empty_event,
    missing_event,
    missing_first,
    missing_last,
    foreign_event,
    illegal_event,
]
TOO_NEW: list[Damage] = [newer_schema, newer_type]
ALL = [(damage, "LOG_CORRUPT") for damage in CORRUPT] + [(damage, "EVENT_TOO_NEW") for damage in TOO_NEW]


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


async def write_log(path: Path, damage: Damage) -> None:
    """A log of three instances at work, of which one is damaged, between the events of the others."""
    log = await SqliteEventLog.open(path)
    await create(log, History("good"))
    await create(log, History("bad").planned())
    await create(log, History("other").planned().done("t1", "t2", "t3").completed())
    await log.aclose()
    with closing(sqlite3.connect(path)) as connection:
        damage(connection, 2)
        connection.commit()


@pytest.mark.parametrize(("damage", "reason"), ALL, ids=[damage.__name__ for damage, _ in ALL])
async def test_an_unreadable_instance_is_shown_as_such_and_takes_nothing_down(
    damage: Damage, reason: str, tmp_path: Path
) -> None:
    await write_log(tmp_path / "log.db", damage)
    async with service_on(tmp_path / "log.db", Scripted()) as service, Client(service.address) as client:
        stub = service.stub
        assert (await service.ended("good")).instance.state == instance_pb2.STATE_COMPLETE
        shown = {each.id: each for each in (await client.list()).instances}
        assert shown.keys() == {"good", "bad", "other"}
        assert shown["bad"].state == instance_pb2.STATE_UNREADABLE
        assert shown["bad"].error.reason == reason
        assert "'bad' cannot be read from event" in shown["bad"].error.message
        if damage is not missing_first:
            assert shown["bad"].prompt == "Build it"  # what is known
            assert shown["bad"].HasField("create_time")
        requests: list[Callable[[], Awaitable[object]]] = [
            lambda: stub.GetInstance(pb.GetInstanceRequest(id="bad")),
            lambda: stub.WaitInstance(pb.WaitInstanceRequest(id="bad")),
            lambda: stub.GetResult(pb.GetResultRequest(id="bad")),
            lambda: stub.PauseInstance(pb.PauseInstanceRequest(id="bad")),
            lambda: stub.TerminateInstance(pb.TerminateInstanceRequest(id="bad")),
        ]
        for request in requests:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await request()
            assert caught.value.code() == grpc.StatusCode.DATA_LOSS
            assert reason_of(caught.value) == reason
        await stub.DeleteInstance(pb.DeleteInstanceRequest(id="bad"))
        assert {each.id for each in (await client.list()).instances} == {"good", "other"}


async def read_until_error(service: Service, instance_id: str) -> tuple[list[int], str]:
    sequences: list[int] = []
    try:
        async for message in service.stub.StreamEvents(pb.StreamEventsRequest(id=instance_id)):
            sequences += [event.sequence for event in message.batch.events]
    except grpc.aio.AioRpcError as error:
        return sequences, f"{error.code().name} {reason_of(error)}"
    return sequences, ""


@pytest.mark.parametrize(
    ("damage", "reason", "readable"),
    [
        (flipped_byte, "LOG_CORRUPT", [1]),
        (missing_event, "LOG_CORRUPT", [1]),
        (missing_first, "LOG_CORRUPT", []),
        (missing_last, "LOG_CORRUPT", [1, 2]),
        (foreign_event, "LOG_CORRUPT", [1]),
        (newer_type, "EVENT_TOO_NEW", [1]),
    ],
)
async def test_a_stream_gives_what_can_be_read_and_no_gap_without_a_word(
    damage: Damage, reason: str, readable: list[int], tmp_path: Path
) -> None:
    await write_log(tmp_path / "log.db", damage)
    async with service_on(tmp_path / "log.db", Scripted()) as service:
        assert await read_until_error(service, "bad") == (readable, f"DATA_LOSS {reason}")
        assert (await read_until_error(service, "other"))[1] == ""


@pytest.mark.parametrize(
    ("damage", "reason", "sequence"),
    [
        (flipped_byte, "LOG_CORRUPT", 2),
        (flipped_length, "LOG_CORRUPT", 2),
        (missing_event, "LOG_CORRUPT", 2),
        (missing_first, "LOG_CORRUPT", 1),
        (missing_last, "LOG_CORRUPT", 3),
        (foreign_event, "LOG_CORRUPT", 2),
        (newer_schema, "EVENT_TOO_NEW", 2),
        (newer_type, "EVENT_TOO_NEW", 2),
    ],
)
async def test_the_stream_of_all_marks_what_cannot_be_read_and_goes_on(
    damage: Damage, reason: str, sequence: int, tmp_path: Path
) -> None:
    await write_log(tmp_path / "log.db", damage)
    async with service_on(tmp_path / "log.db", Scripted()) as service, Client(service.address) as client:
        await service.ended("good")
        markers: list[Unreadable] = []
        seen: dict[str, list[int]] = {}
        last = 0
        async for item in client.stream_all(follow=False):
            if isinstance(item, Unreadable):
                markers.append(item)
                assert item.position >= last
            elif isinstance(item, pb.EventBatch):
                assert item.last_position > last
                last = item.last_position
                for event in item.events:
                    seen.setdefault(event.instance_id, []).append(event.sequence)
        assert [(marker.instance_id, marker.reason, marker.sequence) for marker in markers] == [
            ("bad", reason, sequence)
        ]
        assert sequence not in seen["bad"]
        for name in ("good", "other"):
            assert seen[name] == list(range(1, len(seen[name]) + 1))
        assert len(seen["other"]) > 5
        frames = b""
        request = pb.StreamServerSentEventsRequest()
        stream = service.stub.StreamServerSentEvents(request)
        async for message in stream:
            frames += message.data
            if b"heartbeat" in message.data:
                break
        stream.cancel()
        assert f"id: {markers[0].position}\nevent: unreadable\n".encode() in frames


@pytest.mark.parametrize(
    "states",
    [
        [instance_pb2.STATE_RUNNING] * 300_000,
        list(range(300_000)),
        [77],
        [-1],
    ],
)
async def test_states_that_cannot_be_asked_for_are_rejected(states: list[int], tmp_path: Path) -> None:
    async with service_on(tmp_path / "log.db", Scripted()) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.ListInstances(pb.ListInstancesRequest(states=states))  # type: ignore[arg-type]
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        every = instance_pb2.State.values()
        assert not (await service.stub.ListInstances(pb.ListInstancesRequest(states=every))).instances
