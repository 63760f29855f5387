"""What a service is set to, beside what this terminal would set it to."""

from collections.abc import Iterator
from typing import Final

import grpc

from orchestrator.client import Client, ServiceError
from orchestrator.core.workers import read
from orchestrator.settings import Settings, split_address
from orchestrator.v1.instance_pb2 import InstanceConfig
from orchestrator.v1.orchestrator_pb2 import GetServiceInfoResponse, ServiceModels

_MEND: Final = "start it anew from here"
_LIMITS: Final = ("max_active_instances", "max_queued_instances", "max_concurrent_calls")


async def ask(client: Client) -> GetServiceInfoResponse | None:
    """What the service is set to; None: it is of an earlier version, which does not say."""
    try:
        return await client.info()
    except ServiceError as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise


def model_differences(
    settings: Settings, theirs: ServiceModels | InstanceConfig
) -> Iterator[tuple[str, str]]:
    """Each model that is set here and that the service does not use: that it is so, and the mend."""
    for name in ("big_model", "small_model"):
        wanted, used = getattr(settings, name), getattr(theirs, name)
        if name in settings.sources and wanted != used:
            ours = f"{settings.name_of(name)} is {wanted} here"
            yield (
                f"{ours}, and the service was started without it, with {used}",
                f"{_MEND}, or choose --{name.replace('_', '-')} {wanted} with each instance",
            )


def differences(settings: Settings, info: GetServiceInfoResponse) -> Iterator[tuple[str, str]]:
    """Each other setting that is set here and that the service has otherwise, likewise."""
    theirs = {name: getattr(info.limits, name) for name in _LIMITS}
    theirs |= {"engine": info.engine, "max_output_tokens": info.default_config.max_output_tokens}
    for name, value in theirs.items():
        if name in settings.sources and getattr(settings, name) != value:
            ours = f"{settings.name_of(name)} is {getattr(settings, name)} here"
            yield f"{ours}, and the service has {value}", _MEND
    if "rest_address" in settings.sources and not _is_same_port(settings.rest_address, info.rest_address):
        where = f"answers at {info.rest_address}" if info.rest_address else "has no REST"
        ours = f"{settings.name_of('rest_address')} is {settings.rest_address} here"
        yield f"{ours}, and the service {where}", _MEND
    workers = [(worker.name, worker.use, worker.model) for worker in read(settings.workers)]
    if workers and workers != [(worker.name, worker.use, worker.model) for worker in info.workers]:
        names = ", ".join(worker.name for worker in info.workers) or "none"
        yield f"{settings.name_of('workers')} are not those of the service, which has {names}", _MEND


def _is_same_port(ours: str, theirs: str) -> bool:
    """Whether two addresses have the same port; all are this machine's own. Port 0 is any."""
    if not theirs:
        return False
    port = split_address(ours, "")[1]
    return port in (0, split_address(theirs, "")[1])
