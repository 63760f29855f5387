"""What it means that a key or a request id is taken."""

from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import Instance
from orchestrator.errors import AlreadyExistsError
from orchestrator.log.base import Duplicate


def check_duplicate(wanted: Instance, ref: InstanceRef, request_id: str, request_digest: bytes) -> Duplicate:
    """Tell whether the instance at `ref`, which has the wanted id or request id, is of the same request.

    Raise AlreadyExistsError where it is not.
    """
    if not wanted.request_id or request_id != wanted.request_id:
        raise AlreadyExistsError(
            "INSTANCE_ALREADY_EXISTS",
            f"there is an instance {wanted.id!r} already: choose another id, or leave it out",
            field="id",
            metadata={"id": wanted.id},
        )
    if request_digest != wanted.request_digest:
        raise AlreadyExistsError(
            "REQUEST_ID_REUSED",
            f"request_id {request_id!r} made instance {ref.id!r} from another request: "
            "use a new request_id for a new request",
            field="request_id",
            metadata={"id": ref.id},
        )
    return Duplicate(ref)
