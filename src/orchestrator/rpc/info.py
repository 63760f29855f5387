"""What GetServiceInfo answers: the version, and what the service is set to."""

import uuid
from collections.abc import Iterable
from importlib.metadata import version

from orchestrator.core import create, limits
from orchestrator.installation import DISTRIBUTION
from orchestrator.settings import Settings
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

MAX_BATCH_INSTANCES = limits.of(pb.BatchCreateInstancesRequest, "requests").max_items
MAX_PAGE_SIZE = 1000
"""What a larger page is lowered to: no limit of the field, which may hold any number."""


def service_info(
    settings: Settings,
    defaults: instance_pb2.InstanceConfig,
    catalogue: Iterable[instance_pb2.Worker] | None = None,
) -> pb.GetServiceInfoResponse:
    """Describe a service that is set up like this; its addresses are set once they are bound.

    `catalogue` holds the workers that the defaults name; None: they hold their own.
    """
    shown = defaults.workers if catalogue is None else catalogue
    info = pb.GetServiceInfoResponse(
        version=version(DISTRIBUTION),
        models=pb.ServiceModels(big_model=defaults.big_model, small_model=defaults.small_model),
        workers=[pb.ServiceWorker(name=worker.name, use=worker.use, model=worker.model) for worker in shown],
        limits=pb.ServiceLimits(
            max_active_instances=settings.max_active_instances,
            max_queued_instances=settings.max_queued_instances,
            max_concurrent_calls=settings.max_concurrent_calls,
            max_prompt_bytes=create.MAX_PROMPT_BYTES,
            max_batch_instances=MAX_BATCH_INSTANCES,
            max_page_size=MAX_PAGE_SIZE,
        ),
        engine=settings.engine,
        default_config=defaults,
        service_id=str(uuid.uuid4()),
    )
    for name in ("instructions", "workers", "subtasks"):
        info.default_config.ClearField(name)
    return info
