"""Files that a client brings, from the request to the prompts of the models."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.service import Service, service
from support.team import Team, plan_with, refused, wish

from orchestrator.client import Client, SyncClient
from orchestrator.models.scripted import in_pieces
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.event_pb2 import DECISION_APPROVE
from orchestrator.v1.instance_pb2 import File

MIB = 1024 * 1024
MOST = (("max-response-bytes", str(64 * MIB)),)
APP = File(path="src/app.py", content="def app():\n    return 'π'\n")
README = File(path="README.md", content="# Shop\n")
LARGE = [File(path=f"f{number}.txt", content=f"{number}" * MIB) for number in range(8)]


@pytest.fixture
def team() -> Team:
    return Team()


@pytest.fixture
async def running(tmp_path: Path, team: Team) -> AsyncIterator[Service]:
    async with service(tmp_path / "log.db", team.provider) as running:
        yield running


async def events(running: Service, instance_id: str = "a", metadata: Any = None) -> list[event_pb2.Event]:
    stream = running.stub.StreamEvents(pb.StreamEventsRequest(id=instance_id), metadata=metadata)
    return [event async for message in stream for event in message.batch.events]


async def full(running: Service, instance_id: str = "a") -> instance_pb2.Instance:
    request = pb.GetInstanceRequest(id=instance_id, view=pb.VIEW_FULL)
    return (await running.stub.GetInstance(request)).instance


async def test_files_are_shown_without_contents_in_the_basic_view_and_whole_in_the_full_one(
    running: Service,
) -> None:
    created = (await running.stub.CreateInstance(wish(APP, README))).instance
    ended = (await running.ended("a")).instance
    basic = (await running.stub.GetInstance(pb.GetInstanceRequest(id="a"))).instance
    for shown in (created, ended, basic):
        assert [(file.path, file.content, file.size_bytes) for file in shown.files] == [
            ("src/app.py", "", 27),
            ("README.md", "", 7),
        ]
        assert [(file.language, file.source, len(file.sha256)) for file in shown.files] == [
            ("python", "input", 64),
            ("markdown", "input", 64),
        ]
    assert [file.content for file in (await full(running)).files] == [APP.content, README.content]
    assert [list(subtask.files) for subtask in basic.subtasks] == [["src/app.py"], []]
    (listed,) = (await running.stub.ListInstances(pb.ListInstancesRequest())).instances
    batch = pb.BatchCreateInstancesRequest(requests=[wish(APP, id="b")])
    (made,) = (await running.stub.BatchCreateInstances(batch)).instances
    assert (len(listed.files), len(made.files)) == (0, 0)
    assert [file.content for file in (await full(running, "b")).files] == [APP.content]


async def test_the_first_event_holds_the_files(running: Service) -> None:
    await running.stub.CreateInstance(wish(APP))
    first = (await events(running))[0]
    [file] = first.instance_created.files
    assert (file.path, file.content, file.source) == (APP.path, APP.content, "input")
    planned = [event.subtask_planned.subtask for event in await events(running)]
    assert [list(subtask.files) for subtask in planned if subtask.id] == [["src/app.py"], []]


async def test_files_that_cannot_be_are_refused_by_the_field(running: Service) -> None:
    create, batch = running.stub.CreateInstance, running.stub.BatchCreateInstances
    bad = File(path="../x")
    code, reason, field, _ = await refused(create(wish(APP, bad)))
    assert (code, reason, field) == ("INVALID_ARGUMENT", "FILES_INVALID", "files[1].path")
    both = pb.BatchCreateInstancesRequest(requests=[wish(APP), wish(bad, id="b")])
    assert (await refused(batch(both)))[1:3] == ("FILES_INVALID", "requests[1].files[0].path")
    too_much = wish(*LARGE, File(path="one", content="x"))
    assert (await refused(create(too_much)))[:3] == ("INVALID_ARGUMENT", "FILES_INVALID", "files")
    assert (await refused(running.stub.GetInstance(pb.GetInstanceRequest(id="a"))))[0] == "NOT_FOUND"


async def test_each_model_is_given_what_it_needs_of_them(running: Service, team: Team) -> None:
    await running.stub.CreateInstance(wish(APP, README))
    await running.ended("a")
    assert team.files("planning") == {"src/app.py": APP.content, "README.md": README.content}
    assert team.files("t1") == {"src/app.py": APP.content}
    assert team.files("t2") == {}
    for name in ("planning", "t1", "t2", "synthesis"):
        assert "<tree>\nREADME.md (7 bytes)\nsrc/app.py (27 bytes)\n</tree>" in team.told(name)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_planner_that_names_an_unknown_file_gets_its_name_and_plans_again(
    tmp_path: Path, *, is_streamed: bool
) -> None:
    wrong, right = plan_with(["README.md"], ["src/ap.py"]), plan_with(["README.md"], ["src/app.py"])
    team = Team(lambda: in_pieces(wrong, per_s=10_000) if is_streamed else wrong, right)
    async with service(tmp_path / "log.db", team.provider) as running:
        await running.stub.CreateInstance(wish(APP, README))
        assert (await running.ended("a")).status.status == "complete"
        [failed] = [
            event.planning_failed for event in await events(running) if event.HasField("planning_failed")
        ]
        assert failed.error.reason == "PLAN_INVALID"
        assert "'src/ap.py'" in failed.error.message
        assert "'src/app.py'" in failed.error.message
        assert failed.error.message in team.told("planning")
        assert team.files("t2") == {"src/app.py": APP.content}


async def test_a_plan_of_the_client_and_an_edited_one_name_files(running: Service, team: Team) -> None:
    own = instance_pb2.Subtask(id="own", instructions="do", files=["README.md"])
    await running.stub.CreateInstance(wish(APP, README, config=instance_pb2.InstanceConfig(subtasks=[own])))
    await running.ended("a")
    assert team.files("own") == {"README.md": README.content}
    wrong = instance_pb2.Subtask(id="own", instructions="do", files=["readme"])
    config = instance_pb2.InstanceConfig(subtasks=[wrong])
    refusal = await refused(running.stub.CreateInstance(wish(README, id="b", config=config)))
    assert refusal[:3] == ("INVALID_ARGUMENT", "PLAN_INVALID", "config.subtasks")

    config = instance_pb2.InstanceConfig(review_plan=True)
    await running.stub.CreateInstance(wish(APP, README, id="c", config=config))
    async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="c")):
        if any(event.HasField("plan_completed") for event in message.batch.events):
            break
    edited = pb.ReviewPlanRequest(id="c", decision=DECISION_APPROVE, subtasks=[wrong])
    assert (await refused(running.stub.ReviewPlan(edited)))[1:3] == ("PLAN_INVALID", "subtasks")
    edited.subtasks[0].files[:] = ["src/app.py"]
    await running.stub.ReviewPlan(edited)
    await running.ended("c")
    assert team.files("own") == {"src/app.py": APP.content}


async def test_the_same_request_with_the_same_files_is_made_once(running: Service) -> None:
    once = wish(APP, README, request_id="once")
    await running.stub.CreateInstance(once)
    said = File(path=APP.path, content=APP.content, sha256="mine", size_bytes=1, source="t1")
    again = await running.stub.CreateInstance(wish(README, said, request_id="once"))
    assert (again.id, again.instance.forked_from) == ("a", "")
    other = wish(APP, File(path="README.md", content="# Shops\n"), request_id="once")
    assert (await refused(running.stub.CreateInstance(other)))[:2] == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert len((await running.stub.ListInstances(pb.ListInstancesRequest())).instances) == 1


async def test_files_outlive_a_stop_of_the_service_a_restart_and_a_fork(tmp_path: Path) -> None:
    team = Team()
    async with service(tmp_path / "log.db", team.provider) as running:
        await running.stub.CreateInstance(wish(APP, README))
        await running.ended("a")
    async with service(tmp_path / "log.db", team.provider) as running:
        fork = pb.ForkInstanceRequest(id="a", new_id="fork", stage=pb.STAGE_SUBTASKS)
        await running.stub.ForkInstance(fork)
        await running.ended("fork")
        assert team.files("t1") == {"src/app.py": APP.content}
        await running.stub.RestartInstance(pb.RestartInstanceRequest(id="a"))
        await running.ended("a")
        assert team.files("planning") == {"src/app.py": APP.content, "README.md": README.content}
        assert (await full(running, "fork")).files == (await full(running, "a")).files


async def test_the_most_files_are_taken_and_no_message_is_larger_than_its_client_takes(
    tmp_path: Path,
) -> None:
    team = Team(plan_with(["f1.txt"], ["f2.txt", "f3.txt"]))
    async with service(tmp_path / "log.db", team.provider) as running:
        created = await running.stub.CreateInstance(wish(*LARGE))
        assert [file.size_bytes for file in created.instance.files] == [MIB] * 8
        await running.ended("a")
        first = (await events(running))[0]
        sent = sum(len(file.content) for file in first.instance_created.files)
        assert 3 * MIB < sent < 4 * MIB
        assert first.omitted_bytes == 8 * MIB - sent
        assert [file.path for file in first.instance_created.files] == [file.path for file in LARGE]
        assert (await refused(full(running)))[:2] == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
        async with Client(running.address) as client:
            whole = (await client.get("a", full=True)).instance
            assert [file.content for file in whole.files] == [file.content for file in LARGE]
            [event] = [event async for event in client.stream_events("a") if event.sequence == 1]
            assert [file.content for file in event.instance_created.files] == [file.content for file in LARGE]
            assert event.omitted_bytes == 0
        assert "characters were cut here" in team.told("t2")


async def test_both_clients_send_files(running: Service) -> None:
    async with Client(running.address) as client:
        await client.create("x", instance_id="async", files=[APP])

        def create() -> None:
            with SyncClient(running.address) as blocking:
                blocking.create("x", instance_id="sync", files=[APP])

        await asyncio.to_thread(create)
        for name in ("async", "sync"):
            [file] = (await client.get(name, full=True)).instance.files
            assert file.content == APP.content
