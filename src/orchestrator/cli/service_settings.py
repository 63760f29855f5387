"""Differences between the settings of a running service and those of this terminal."""

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


async def fetch_info(client: Client) -> GetServiceInfoResponse | None:
    """Fetch the settings of the service; None where an earlier version does not report them."""
    try:
        return await client.info()
    except ServiceError as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise


def model_differences(
    settings: Settings, theirs: ServiceModels | InstanceConfig
) -> Iterator[tuple[str, str]]:
    """Give the difference and its mend for each model that is set here and not used by the service."""
    for name in ("big_model", "small_model"):
        wanted, used = getattr(settings, name), getattr(theirs, name)
        if name in settings.sources and wanted != used:
            ours = f"{settings.name_of(name)} is {wanted} here"
            yield (
                f"{ours}, and the service was started without it, with {used}",
                f"{_MEND}, or choose --{name.replace('_', '-')} {wanted} with each instance",
            )


def setting_differences(settings: Settings, info: GetServiceInfoResponse) -> Iterator[tuple[str, str]]:
    """Give the difference and its mend for each other setting that differs."""
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
    """Return whether two addresses of this machine have the same port; port 0 matches any."""
    if not theirs:
        return False
    port = split_address(ours, "")[1]
    return port in (0, split_address(theirs, "")[1])
