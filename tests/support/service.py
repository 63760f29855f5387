"""The real service in this process: real gRPC, real SQLite, a provider that the test chooses."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from orchestrator.auth.authenticator import NO_AUTHENTICATION, Authenticator
from orchestrator.core import config
from orchestrator.core.quota import NO_QUOTA, Quota
from orchestrator.engine.local import LocalEngine
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import Models, Provider
from orchestrator.models.prices import Prices
from orchestrator.rpc.server import serving
from orchestrator.rpc.service import OrchestratorService
from orchestrator.tls import CertificateFiles
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.instance_pb2 import InstanceConfig, Worker
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub

DEFAULTS = config.default("scripted/big", "scripted/small")


@dataclass(frozen=True)
class Service:
    address: str
    stub: OrchestratorStub
    log: SqliteEventLog
    engine: LocalEngine

    async def ended(self, instance_id: str) -> pb.WaitInstanceResponse:
        answer = await self.stub.WaitInstance(pb.WaitInstanceRequest(id=instance_id))
        assert answer.instance.HasField("end_time"), answer
        return answer


@asynccontextmanager
async def service(
    path: Path,
    provider: Provider,
    *,
    max_active: int = 1000,
    max_queued: int = 10_000,
    max_calls: int = 64,
    quota: Callable[[str], Quota] = lambda _: NO_QUOTA,
    prices: Mapping[str, object] | None = None,
    workers: Sequence[Worker] = (),
    authenticator: Authenticator = NO_AUTHENTICATION,
    tls: CertificateFiles | None = None,
) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        log = await SqliteEventLog.open(path)
        stack.push_async_callback(log.aclose)
        engine = await stack.enter_async_context(
            LocalEngine.running(
                log,
                Models({"scripted": provider}, Prices.read(prices or {})),
                max_active=max_active,
                max_queued=max_queued,
                max_calls=max_calls,
                quota=quota,
            )
        )
        defaults = InstanceConfig()
        defaults.CopyFrom(DEFAULTS)
        if workers:
            defaults.catalogue = await engine.states.store_catalogue(workers)
        address = await stack.enter_async_context(
            serving(
                OrchestratorService(engine, log, defaults),
                log.notifier,
                "127.0.0.1:0",
                authenticator=authenticator,
                tls=tls,
                grace_s=1,
            )
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield Service(address, OrchestratorStub(channel), log, engine)
