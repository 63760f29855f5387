"""Everything this service raises on purpose.

What the caller can do about it decides the type; each message names the thing, the value and the mend.

OrchestratorError
├── SettingsError                 start-up: change a setting, then start again
├── StorageError                  start-up: the event log cannot be opened
├── RequestError                  one RPC is refused; `reason` is the wire's
│   ├── InvalidArgumentError      PROMPT_EMPTY, CONFIG_INVALID, PLAN_INVALID, …
│   ├── InstanceNotFoundError     INSTANCE_NOT_FOUND
│   ├── ResultFileNotFoundError   FILE_NOT_FOUND
│   ├── AlreadyExistsError        INSTANCE_ALREADY_EXISTS, REQUEST_ID_REUSED
│   ├── StateForbidsError         STATE_FORBIDS
│   ├── SequenceOutOfRangeError   SEQUENCE_OUT_OF_RANGE
│   ├── QueueFullError            QUEUE_FULL
│   ├── QuotaExceededError        QUOTA_EXCEEDED
│   ├── ResponseTooLargeError     RESPONSE_TOO_LARGE
│   ├── UnauthenticatedError      TOKEN_MISSING, TOKEN_INVALID
│   ├── RoleForbidsError          ROLE_FORBIDS
│   └── UnavailableError          SHUTTING_DOWN, STORAGE_READ_ONLY, COMMIT_UNKNOWN
└── ModelError                    one model call failed; becomes a *Failed event
    └── AddressError              and all others will, until the endpoint's address is corrected
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_MAX_NAMED_CHARACTERS: Final = 1000
"""So much of a path, and of a list of them, is part of a message."""
QUOTATION: Final = ". It said: "
"""What stands in a message before the words of an endpoint."""
PAGE_QUOTATION: Final = ". It sent a web page: "
_QUOTING_REASONS: Final = frozenset({"MODEL_REFUSED", "OUTPUT_INVALID", "OUTPUT_INCOMPLETE", "PLAN_INVALID"})
"""The reasons of failures of which the message may quote an answer anywhere."""


def without_quotation(reason: str, message: str) -> str:
    """Return a failure's message without what an endpoint or a model said; empty: it may be all quotation."""
    if reason in _QUOTING_REASONS:
        return ""
    return message.partition(QUOTATION)[0].partition(PAGE_QUOTATION)[0]


QUEUE_RETRY_S: Final = 10.0
"""When one whom a full queue has turned away is to try again."""


class OrchestratorError(Exception):
    """The root: `str()` of it is fit to show to a person."""


class SettingsError(OrchestratorError):
    """A setting cannot be used."""


class StorageError(OrchestratorError):
    """The event log cannot be opened, or is another server's."""


class RequestError(OrchestratorError):
    """A request is refused; nothing was changed.

    `reason` is ErrorInfo's reason, `metadata` its metadata, `field` the path of the request's field at
    fault (empty: none), `retry_after_s` how many seconds to wait where waiting helps.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str = "",
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field
        self.metadata = metadata or {}
        self.retry_after_s = retry_after_s


class InvalidArgumentError(RequestError):
    """The request itself is wrong: mend it, then send it again."""


@contextmanager
def at_field(path: str) -> Iterator[None]:
    """Prefix the field of an InvalidArgumentError with the path of the part of the request."""
    try:
        yield
    except InvalidArgumentError as error:
        error.field = f"{path}.{error.field}" if error.field else path
        error.args = (f"{path}: {error}",)
        raise


class InstanceNotFoundError(RequestError):
    """There is no such instance."""

    def __init__(self, instance_id: str) -> None:
        super().__init__("INSTANCE_NOT_FOUND", f"no instance {instance_id!r}", metadata={"id": instance_id})


class ResultFileNotFoundError(RequestError):
    """The instance has no such file; `paths` are those that it has."""

    def __init__(self, instance_id: str, path: str, paths: Sequence[str]) -> None:
        named, length = [], 0
        for each in paths:
            length += len(each)
            if length > _MAX_NAMED_CHARACTERS:
                named.append(f"… ({len(paths)} in all, see ListFiles)")
                break
            named.append(each)
        there = f"there are {', '.join(named)}" if named else "it has none"
        super().__init__(
            "FILE_NOT_FOUND",
            f"instance {instance_id!r} has no file {path[:_MAX_NAMED_CHARACTERS]!r}: {there}",
            field="path",
            metadata={"id": instance_id, "path": path[:_MAX_NAMED_CHARACTERS]},
        )


class AlreadyExistsError(RequestError):
    """The id or the request id is taken."""


class StateForbidsError(RequestError):
    """The instance's state does not allow the action."""

    def __init__(self, instance_id: str, *, state: str, action: str, why: str) -> None:
        super().__init__(
            "STATE_FORBIDS",
            f"instance {instance_id!r} is {state}: it cannot be asked to {action}{why}",
            metadata={"state": state, "action": action},
        )


class SequenceOutOfRangeError(RequestError):
    """A reader asks for what has not been written."""

    def __init__(self, field: str, after: int, last: int) -> None:
        super().__init__(
            "SEQUENCE_OUT_OF_RANGE",
            f"{field} is {after} and must be 0 to {last}, the last event: resume with one that you have seen",
            field=field,
            metadata={"last_sequence": str(last)},
        )


class SequenceMismatchError(RequestError):
    """The instance has gone on since the client looked at it."""

    def __init__(self, instance_id: str, expected: int, last: int) -> None:
        super().__init__(
            "SEQUENCE_MISMATCH",
            f"instance {instance_id!r} was expected at event {expected} and is at event {last}: look at what "
            "has happened, then ask again with that sequence",
            field="expected_sequence",
            metadata={"last_sequence": str(last)},
        )


class QueueFullError(RequestError):
    """Too many instances wait already: try again later."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            "QUEUE_FULL",
            f"{waiting} instances wait for their turn: try again later, or raise "
            "ORCHESTRATOR_MAX_QUEUED_INSTANCES",
            retry_after_s=QUEUE_RETRY_S,
        )


class QuotaExceededError(RequestError):
    """A tenant has used up what it may use for now."""

    def __init__(self, tenant: str, message: str, quota: str, *, retry_after_s: float) -> None:
        super().__init__(
            "QUOTA_EXCEEDED",
            message,
            metadata={"tenant": tenant, "quota": quota},
            retry_after_s=retry_after_s,
        )


class UnauthenticatedError(RequestError):
    """There are no credentials, or they are not valid."""


class RoleForbidsError(RequestError):
    """The caller's role does not allow the RPC."""

    def __init__(self, role: str, method: str, needed: str) -> None:
        super().__init__(
            "ROLE_FORBIDS",
            f"the role {role} does not allow {method}: {needed}",
            metadata={"role": role, "method": method},
        )


class ResponseTooLargeError(RequestError):
    """The whole answer is larger than its client takes; `mends` are the ways to have it all the same."""

    def __init__(self, size: int, limit: int, mends: Sequence[str]) -> None:
        super().__init__(
            "RESPONSE_TOO_LARGE",
            f"the answer has {size} bytes and may have {limit}: {', or '.join(mends)}",
            metadata={"size_bytes": str(size), "max_response_bytes": str(limit)},
        )


class UnavailableError(RequestError):
    """The service cannot take this now: try again."""


class ModelError(OrchestratorError):
    """A model call failed.

    `reason` is the Failure's reason. `retryable` says whether the same call may succeed later;
    `retry_after_s` is how many seconds the endpoint asked to wait. The tokens are those that the endpoint
    said the failed call used, `response_id` is its own name for the answer (empty: there was none).
    `is_shared` says whether it concerns all models of the endpoint, not just the one that was called.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retryable: bool,
        retry_after_s: float | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        response_id: str = "",
        is_shared: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_shared = is_shared
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.response_id = response_id

    @property
    def is_refusal(self) -> bool:
        """Whether the endpoint has more calls than it takes: then others should wait as well."""
        return self.retryable and self.reason == "RATE_LIMITED"

    @property
    def is_fault(self) -> bool:
        """Whether the endpoint failed: once, that is this call's alone; often in a row, it needs a pause."""
        return self.reason == "OVERLOADED"


class AddressError(ModelError):
    """No call can succeed until a person corrects an endpoint's address, or what lies on the way to it.

    `mend` says how; it is part of the message.
    """

    def __init__(self, reason: str, problem: str, mend: str, said: str = "") -> None:
        super().__init__(reason, f"{problem}: {mend}{said}", retryable=False)
        self.mend = mend
