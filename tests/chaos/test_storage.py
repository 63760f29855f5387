"""Disks that fail under the real service: system calls fail by strace's injection."""

import asyncio
from pathlib import Path

from support.endpoint import Endpoint, hang
from support.process import Process, on_endpoint, process
from support.storage import injected

from orchestrator.client import Client, ServiceError

ANSWER_S = 6.0
"""A client is answered within 1 s; a machine under load and strace take their part of this."""


async def create_all(client: Client, *names: str) -> dict[str, str]:
    """Create instances at once; give each one's reason of failure, empty where it was acknowledged."""

    async def create(name: str) -> str:
        try:
            await client.create("Build it", instance_id=name)
        except ServiceError as error:
            return error.reason
        return ""

    async with asyncio.timeout(ANSWER_S):
        return dict(zip(names, await asyncio.gather(*map(create, names)), strict=True))


async def recorded(service: Process) -> set[str]:
    async with Client(service.grpc_address) as client:
        return {instance.id for instance in (await client.list()).instances}


async def test_what_was_refused_does_not_exist_after_a_failed_sync_and_a_kill(tmp_path: Path) -> None:
    names = [f"i{number}" for number in range(6)]
    async with (
        Endpoint(lambda _: hang) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        async with Client(service.grpc_address) as client:
            assert await create_all(client, "before") == {"before": ""}
            async with injected(service.process.pid, "fdatasync:error=EIO", "fsync:error=EIO"):
                told = await create_all(client, *names)
                told |= await create_all(client, "later")
                await service.kill()
        assert set(told.values()) <= {"STORAGE_READ_ONLY", "COMMIT_UNKNOWN"}
        assert "COMMIT_UNKNOWN" in told.values()
        await service.start()
        found = await recorded(service)
    assert "before" in found
    assert {name for name in found if told.get(name) == "STORAGE_READ_ONLY"} == set()


async def test_a_sync_that_fails_once_leaves_nothing_unsaid(tmp_path: Path) -> None:
    async with (
        Endpoint(lambda _: hang) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        async with Client(service.grpc_address) as client:
            # Of each thread the first one: a connection that is opened anew has a thread of its own.
            async with injected(service.process.pid, "fdatasync:error=EIO:when=1"):
                told = await create_all(client, "a")
                while told["a"]:
                    told = await create_all(client, "a")  # ALREADY_EXISTS would be one that exists unsaid
            await service.kill()
        await service.start()
        assert await recorded(service) == {"a"}


async def test_a_full_disk_hangs_nobody_and_calls_nobody(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        async with injected(service.process.pid, "pwrite64:error=ENOSPC"):
            for _ in range(3):
                told = await create_all(client, "a", "b", "c")
                assert set(told.values()) == {"STORAGE_READ_ONLY"}
            assert (await client.list()).instances == []
            assert not endpoint.calls
        answered = False
        while not answered:
            answered = await create_all(client, "a") == {"a": ""}
        assert (await client.wait("a", timeout_s=30)).status.status == "complete"
