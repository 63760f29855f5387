"""An instance that goes on from a finished one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
from support.service import Service, service
from support.team import Team, plan_with, refused, wish

from orchestrator.client import Client
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.instance_pb2 import File

APP = File(path="src/app.py", content="def app():\n    return 1\n")
README = File(path="README.md", content="# Shop\n")
CHANGED = "def app():\n    return 2\n"
RESULT = f"# It is built\n\n```python path=src/app.py\n{CHANGED}```\n\n```sql path=db.sql\nselect 1;\n```"


class Builders(Team):
    """A team whose synthesis can be held up."""

    def __init__(self) -> None:
        super().__init__(plan_with([]), result=RESULT)
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    def _answer(self, request: ModelRequest) -> Answer | Awaitable[Answer]:
        async def finish(answer: Answer) -> Answer:
            await self.may_finish.wait()
            return answer

        answer = super()._answer(request)
        assert not isinstance(answer, Awaitable)
        return finish(answer) if request.prompt.role == "synthesis" else answer


@pytest.fixture
def team() -> Builders:
    return Builders()


@pytest.fixture
async def running(tmp_path: Path, team: Builders) -> AsyncIterator[Service]:
    """A service with a finished instance `a` that was given two files."""
    async with service(tmp_path / "log.db", team.provider) as running:
        await running.stub.CreateInstance(wish(APP, README, prompt="Build a shop"))
        await running.ended("a")
        yield running


def follow_up(*brought: File, of: str = "a", **more: object) -> pb.CreateInstanceRequest:
    return wish(*brought, **{"id": "b", "continues": of, "prompt": "Add pages", **more})


async def full(running: Service, instance_id: str) -> instance_pb2.Instance:
    request = pb.GetInstanceRequest(id=instance_id, view=pb.VIEW_FULL)
    return (await running.stub.GetInstance(request)).instance


async def test_it_has_the_earlier_prompt_result_and_files(running: Service, team: Builders) -> None:
    created = (await running.stub.CreateInstance(follow_up())).instance
    assert (created.id, created.continues, created.prompt) == ("b", "a", "Add pages")
    await running.ended("b")
    for name in ("planning", "t1", "synthesis"):
        assert "<earlier_prompt>\nBuild a shop\n</earlier_prompt>" in team.told(name)
        assert f"<earlier_result>\n{RESULT}\n</earlier_result>" in team.told(name)
        assert "<prompt>\nAdd pages\n</prompt>" in team.told(name)
    expected = {"README.md": README.content, "db.sql": "select 1;\n", "src/app.py": CHANGED}
    assert team.files("planning") == expected
    shown = (await full(running, "b")).files
    assert {file.path: file.content for file in shown} == expected
    assert {file.source for file in shown} == {"input"}
    assert {file.path: file.language for file in shown} == {
        "README.md": "markdown",
        "db.sql": "sql",
        "src/app.py": "python",
    }
    (listed, _) = (await running.stub.ListInstances(pb.ListInstancesRequest())).instances
    assert (listed.id, listed.continues) == ("b", "a")


async def test_files_of_its_own_take_the_place_of_the_earlier_ones(running: Service, team: Builders) -> None:
    await running.stub.CreateInstance(follow_up(File(path="own.txt", content="mine")))
    await running.ended("b")
    assert [file.path for file in (await full(running, "b")).files] == ["own.txt"]
    assert "Build a shop" in team.told("planning")


async def test_it_names_the_earlier_files_in_a_plan_of_its_own(running: Service, team: Builders) -> None:
    def config(path: str) -> instance_pb2.InstanceConfig:
        own = instance_pb2.Subtask(id="own", instructions="do", files=[path])
        return instance_pb2.InstanceConfig(subtasks=[own])

    refusal = await refused(running.stub.CreateInstance(follow_up(config=config("db.sq"))))
    assert refusal[:3] == ("INVALID_ARGUMENT", "PLAN_INVALID", "config.subtasks")
    await running.stub.CreateInstance(follow_up(config=config("db.sql")))
    await running.ended("b")
    assert team.files("own") == {"db.sql": "select 1;\n"}


async def test_there_must_be_an_instance_and_it_must_have_a_result(running: Service, team: Builders) -> None:
    create = running.stub.CreateInstance
    assert (await refused(create(follow_up(of="none"))))[:2] == ("NOT_FOUND", "INSTANCE_NOT_FOUND")
    assert (await refused(create(follow_up(of="no id"))))[:3] == (
        "INVALID_ARGUMENT",
        "ID_INVALID",
        "continues",
    )
    team.may_finish.clear()
    await create(wish(id="slow"))
    code, reason, _, metadata = await refused(create(follow_up(of="slow")))
    assert (code, reason) == ("FAILED_PRECONDITION", "STATE_FORBIDS")
    assert metadata["state"] in ("queued", "running")
    assert metadata["action"] == "continue"
    await running.stub.TerminateInstance(pb.TerminateInstanceRequest(id="slow"))
    metadata = (await refused(create(follow_up(of="slow"))))[3]
    assert metadata == {"state": "terminated", "action": "continue"}
    assert (await refused(running.stub.GetInstance(pb.GetInstanceRequest(id="b"))))[0] == "NOT_FOUND"


async def test_an_instance_that_begins_anew_has_no_result_until_it_has_one_again(
    running: Service, team: Builders
) -> None:
    team.may_finish.clear()
    await running.stub.RestartInstance(pb.RestartInstanceRequest(id="a"))
    assert (await refused(running.stub.CreateInstance(follow_up())))[1] == "STATE_FORBIDS"
    team.may_finish.set()
    await running.ended("a")
    assert (await running.stub.CreateInstance(follow_up())).instance.continues == "a"


async def test_it_does_not_need_the_earlier_one_any_more(running: Service, team: Builders) -> None:
    team.may_finish.clear()
    await running.stub.CreateInstance(follow_up())
    await running.stub.DeleteInstance(pb.DeleteInstanceRequest(id="a"))
    team.may_finish.set()
    await running.ended("b")
    assert "Build a shop" in team.told("synthesis")
    for request, call in (
        (pb.RestartInstanceRequest(id="b"), running.stub.RestartInstance),
        (pb.ForkInstanceRequest(id="b", new_id="fork", stage=pb.STAGE_PLAN), running.stub.ForkInstance),
    ):
        made = (await call(request)).instance
        assert made.continues == "a"
        await running.ended(made.id)
        assert "Build a shop" in team.told("planning")
        assert team.files("planning")["src/app.py"] == CHANGED


async def test_the_same_request_gives_the_first_instance_though_the_earlier_one_is_gone(
    running: Service,
) -> None:
    once = follow_up(request_id="once")
    await running.stub.CreateInstance(once)
    await running.ended("b")
    await running.stub.DeleteInstance(pb.DeleteInstanceRequest(id="a"))
    again = await running.stub.CreateInstance(once)
    assert (again.id, again.details.status, again.instance.continues) == ("b", "complete", "a")
    other = follow_up(request_id="once", prompt="Add sorting")
    assert (await refused(running.stub.CreateInstance(other)))[:2] == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    taken = follow_up()
    assert (await refused(running.stub.CreateInstance(taken)))[1] == "INSTANCE_ALREADY_EXISTS"
    batch = pb.BatchCreateInstancesRequest(requests=[wish(id="first"), once, wish(id="last")])
    made = (await running.stub.BatchCreateInstances(batch)).instances
    assert [each.id for each in made] == ["first", "b", "last"]
    repeated = pb.BatchCreateInstancesRequest(requests=[once])
    assert [each.id for each in (await running.stub.BatchCreateInstances(repeated)).instances] == ["b"]


async def test_a_batch_with_one_that_cannot_go_on_makes_none(running: Service) -> None:
    batch = pb.BatchCreateInstancesRequest(requests=[follow_up(), follow_up(id="c", of="none")])
    assert (await refused(running.stub.BatchCreateInstances(batch)))[:2] == (
        "NOT_FOUND",
        "INSTANCE_NOT_FOUND",
    )
    assert (await refused(running.stub.GetInstance(pb.GetInstanceRequest(id="b"))))[0] == "NOT_FOUND"
    batch.requests[1].continues = "a"
    made = (await running.stub.BatchCreateInstances(batch)).instances
    assert [(each.id, each.continues) for each in made] == [("b", "a"), ("c", "a")]


async def test_in_a_chain_each_is_given_the_one_before_it(running: Service, team: Builders) -> None:
    await running.stub.CreateInstance(follow_up())
    await running.ended("b")
    await running.stub.CreateInstance(follow_up(id="c", of="b", prompt="Add sorting"))
    await running.ended("c")
    assert "<earlier_prompt>\nAdd pages\n</earlier_prompt>" in team.told("planning")
    assert "Build a shop" not in team.told("planning")
    assert team.files("planning")["README.md"] == README.content


async def test_the_client_goes_on(running: Service) -> None:
    async with Client(running.address) as client:
        created = await client.create("Add pages", continues="a")
        assert created.instance.continues == "a"
        [file] = (await client.create("Add pages", continues="a", files=[APP])).instance.files
        assert file.path == APP.path
