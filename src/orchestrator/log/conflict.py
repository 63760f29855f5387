"""What it means that an id or a request id is taken."""

from orchestrator.core.instance import Instance
from orchestrator.errors import AlreadyExistsError
from orchestrator.log.base import DuplicateRequest


def conflict(wanted: Instance, taken: Instance | None) -> Exception | None:
    """Why `wanted` cannot be created beside the instance that has its id or request id; None: it can."""
    if taken is None:
        return None
    if not wanted.request_id or taken.request_id != wanted.request_id:
        return AlreadyExistsError(
            "INSTANCE_ALREADY_EXISTS",
            f"there is an instance {wanted.id!r} already: choose another id, or leave it out",
            field="id",
            metadata={"id": wanted.id},
        )
    if taken.request_digest != wanted.request_digest:
        return AlreadyExistsError(
            "REQUEST_ID_REUSED",
            f"request_id {wanted.request_id!r} made instance {taken.id!r} from another request: "
            "use a new request_id for a new request",
            field="request_id",
            metadata={"id": taken.id},
        )
    return DuplicateRequest(taken.id)
