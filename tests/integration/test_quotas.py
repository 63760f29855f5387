"""What a tenant may use, and that no tenant keeps another one from working. Real engine, SQLite and gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status
from support.callers import Callers
from support.service import Service, service

from orchestrator.auth.caller import Role
from orchestrator.core.quota import NO_QUOTA, Quota
from orchestrator.models.base import ModelReply, ModelRequest
from orchestrator.models.scripted import Scripted
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

PRICES = {
    "scripted/big": {"input_usd": 1_000_000.0, "output_usd": 1_000_000.0},
    "scripted/small": {"input_usd": 1_000_000.0, "output_usd": 1_000_000.0},
}
"""A dollar a token."""


class Quotas(dict[str, Quota]):
    def __call__(self, tenant: str) -> Quota:
        return self.get(tenant, NO_QUOTA)


async def never(_: ModelRequest) -> ModelReply:
    await asyncio.Event().wait()
    raise AssertionError


def paid(request: ModelRequest) -> ModelReply:
    """Answer as Scripted does, for two tokens a call."""
    text = Scripted(subtasks=1)._canned(request)
    return ModelReply(text, input_tokens=1, output_tokens=1)


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


@asynccontextmanager
async def served(
    callers: Callers, provider: Scripted, quotas: Callable[[str], Quota], **options: Any
) -> AsyncIterator[tuple[Service, Callable[..., Any]]]:
    async with (
        service(
            callers.file.with_name("log.db"),
            provider,
            authenticator=callers.authenticator(),
            quota=quotas,
            **options,
        ) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield running, lambda tenant, role=Role.WRITE: callers.stub(channel, tenant, role)


async def exceeded(call: Any) -> tuple[str, str, float]:
    """Await a call that fails; return ErrorInfo's reason and quota, and RetryInfo's seconds."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info, retry = ErrorInfo(), RetryInfo()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    return info.reason, info.metadata["quota"], retry.retry_delay.ToNanoseconds() / 1e9


async def until_state(stub: Any, instance_id: str, *states: int) -> instance_pb2.Instance:
    call = stub.StreamEvents(pb.StreamEventsRequest(id=instance_id))
    async for _ in call:
        shown = (await stub.GetInstance(pb.GetInstanceRequest(id=instance_id))).instance
        if shown.state in states:
            call.cancel()
            return shown
    raise AssertionError(shown)


async def test_no_more_of_a_tenants_instances_run_than_it_may(callers: Callers) -> None:
    quotas = Quotas(acme=Quota(max_active=1))
    async with served(callers, Scripted(never), quotas) as (_, stub_of):
        acme = stub_of("acme")
        first = (await acme.CreateInstance(pb.CreateInstanceRequest(prompt="p"))).id
        second = (await acme.CreateInstance(pb.CreateInstanceRequest(prompt="p"))).id
        other = (await stub_of("initech").CreateInstance(pb.CreateInstanceRequest(prompt="p"))).id
        await until_state(acme, first, instance_pb2.STATE_RUNNING)
        await until_state(stub_of("initech"), other, instance_pb2.STATE_RUNNING)
        waits = (await acme.GetInstance(pb.GetInstanceRequest(id=second))).instance
        assert waits.state == instance_pb2.STATE_QUEUED
        assert waits.waiting_reason == "1 instances of the tenant 'acme' are at work, and its quota allows 1"
        await acme.TerminateInstance(pb.TerminateInstanceRequest(id=first))
        await until_state(acme, second, instance_pb2.STATE_RUNNING)


async def test_a_raised_quota_counts_without_a_restart(callers: Callers) -> None:
    quotas = Quotas(acme=Quota(max_active=0))
    async with served(callers, Scripted(subtasks=1), quotas) as (_, stub_of):
        acme = stub_of("acme")
        created = await acme.CreateInstance(pb.CreateInstanceRequest(prompt="p"))
        assert created.instance.state == instance_pb2.STATE_QUEUED
        quotas["acme"] = Quota(max_active=1)
        await until_state(acme, created.id, instance_pb2.STATE_COMPLETE)


async def test_a_tenant_queues_no_more_than_it_may(callers: Callers) -> None:
    quotas = Quotas(acme=Quota(max_active=1, max_queued=2))
    async with served(callers, Scripted(never), quotas) as (_, stub_of):
        acme = stub_of("acme")
        requests = [pb.CreateInstanceRequest(prompt="p", request_id=str(number)) for number in range(4)]
        batch = pb.BatchCreateInstancesRequest(requests=requests)
        assert (await exceeded(acme.BatchCreateInstances(batch)))[:2] == ("QUOTA_EXCEEDED", "max_queued")
        created = [await acme.CreateInstance(request) for request in requests[:3]]
        reason, quota, retry_s = await exceeded(acme.CreateInstance(requests[3]))
        assert (reason, quota, retry_s) == ("QUOTA_EXCEEDED", "max_queued", 10.0)
        assert (await acme.CreateInstance(requests[0])).id == created[0].id, "a repeat is no new one"
        fork = pb.ForkInstanceRequest(id=created[0].id, stage=pb.STAGE_PLAN)
        assert (await exceeded(acme.ForkInstance(fork)))[:2] == ("QUOTA_EXCEEDED", "max_queued")
        await stub_of("initech").CreateInstance(requests[3])


async def test_a_day_that_is_paid_for_begins_no_more_work(callers: Callers) -> None:
    quotas = Quotas(acme=Quota(max_cost_usd_per_day=1.0))
    async with served(callers, Scripted(paid), quotas, prices=PRICES) as (_, stub_of):
        acme = stub_of("acme")
        first = await acme.CreateInstance(pb.CreateInstanceRequest(prompt="p"))
        spent = (await acme.WaitInstance(pb.WaitInstanceRequest(id=first.id))).instance.usage.cost_usd
        assert spent >= 1.0
        reason, quota, retry_s = await exceeded(acme.CreateInstance(pb.CreateInstanceRequest(prompt="p")))
        assert (reason, quota) == ("QUOTA_EXCEEDED", "max_cost_usd_per_day")
        assert 0 < retry_s <= 86_400
        await acme.RestartInstance(pb.RestartInstanceRequest(id=first.id))
        waits = (await acme.GetInstance(pb.GetInstanceRequest(id=first.id))).instance
        assert "has spent $" in waits.waiting_reason
        assert "it goes on at midnight UTC" in waits.waiting_reason
        await stub_of("initech").CreateInstance(pb.CreateInstanceRequest(prompt="p"))
    # After a restart it is the log that says so.
    async with served(callers, Scripted(paid), quotas, prices=PRICES) as (running, stub_of):
        assert (await exceeded(stub_of("acme").CreateInstance(pb.CreateInstanceRequest(prompt="p"))))[
            1
        ] == quota
        assert await running.engine._spending.read_usd("acme") == pytest.approx(spent)
        quotas["acme"] = Quota(max_cost_usd_per_day=1000.0)
        await until_state(stub_of("acme"), first.id, instance_pb2.STATE_COMPLETE)


async def test_what_a_fork_copies_is_not_paid_for_twice(callers: Callers) -> None:
    async with served(callers, Scripted(paid), Quotas(), prices=PRICES) as (running, stub_of):
        acme = stub_of("acme")
        first = await acme.CreateInstance(pb.CreateInstanceRequest(prompt="p"))
        source = (await acme.WaitInstance(pb.WaitInstanceRequest(id=first.id))).instance
        spending = running.engine._spending
        assert await spending.read_usd("acme") == pytest.approx(source.usage.cost_usd)
        forked = await acme.ForkInstance(pb.ForkInstanceRequest(id=first.id, stage=pb.STAGE_SYNTHESIS))
        copy = (await acme.WaitInstance(pb.WaitInstanceRequest(id=forked.instance.id))).instance
        assert copy.own_usage.cost_usd < copy.usage.cost_usd
        total = source.usage.cost_usd + copy.own_usage.cost_usd
        assert await spending.read_usd("acme") == pytest.approx(total)
        assert await spending.read_usd("initech") == 0.0


async def test_a_tenants_full_queue_holds_up_no_other(callers: Callers) -> None:
    async with served(callers, Scripted(never), Quotas(), max_active=1, max_queued=20) as (_, stub_of):
        acme, initech = stub_of("acme"), stub_of("initech")
        ids = [(await acme.CreateInstance(pb.CreateInstanceRequest(prompt="p"))).id for _ in range(21)]
        assert (await exceeded(acme.CreateInstance(pb.CreateInstanceRequest(prompt="p"))))[0] == "QUEUE_FULL"
        other = (await initech.CreateInstance(pb.CreateInstanceRequest(prompt="p"))).id
        await until_state(acme, ids[0], instance_pb2.STATE_RUNNING)
        await acme.TerminateInstance(pb.TerminateInstanceRequest(id=ids[0]))
        await until_state(acme, ids[1], instance_pb2.STATE_RUNNING)
        await acme.TerminateInstance(pb.TerminateInstanceRequest(id=ids[1]))
        await until_state(initech, other, instance_pb2.STATE_RUNNING)
        assert (
            await acme.GetInstance(pb.GetInstanceRequest(id=ids[2]))
        ).instance.state == instance_pb2.STATE_QUEUED
