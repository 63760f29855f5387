"""What a client may ask for when it creates an instance."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestrator.core import config, decider, limits, plan
from orchestrator.core.instance import Instance
from orchestrator.core.origin import NO_ORIGIN, Origin
from orchestrator.errors import InvalidArgumentError
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event, InstanceCreated
from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest

MAX_PROMPT_BYTES: Final = limits.of(CreateInstanceRequest, "prompt").max_bytes
_REQUEST_ID: Final = limits.of(CreateInstanceRequest, "request_id")
_LABELS: Final = limits.of(CreateInstanceRequest, "labels")


@dataclass(frozen=True, slots=True)
class NewInstance:
    """A validated request for an instance; `config` is resolved."""

    id: str
    prompt: str
    config: pb.InstanceConfig
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    request_digest: bytes = b""
    """SHA-256 of the request without its request_id."""
    forked_from: str = ""
    origin: Origin = NO_ORIGIN
    tenant: str = ""
    """Whose it is: ids and request ids are unique within a tenant."""
    history: Sequence[Event] = ()
    """The events that a fork copies from its source, to follow InstanceCreated."""

    def begin(self, now_s: float) -> tuple[Instance, Sequence[Event]]:
        """Return the new instance and its first events."""
        created = InstanceCreated(
            prompt=self.prompt,
            config=self.config,
            labels=self.labels,
            request_id=self.request_id,
            request_digest=self.request_digest,
            forked_from=self.forked_from,
            copied_events=len(self.history),
        )
        first = Event(instance_created=created)
        self.origin.stamp([first])
        events = [first, *self.history]
        return decider.apply(Instance(id=self.id), events, now_s), events


def new_instance(
    request: CreateInstanceRequest, *, base: pb.InstanceConfig, fallback_id: str, origin: Origin = NO_ORIGIN
) -> NewInstance:
    """Validate a request; raise InvalidArgumentError that names the field and the mend."""
    prompt = request.prompt
    if not prompt or prompt.isspace():
        raise InvalidArgumentError("PROMPT_EMPTY", "prompt is empty: say what is to be done", field="prompt")
    if limits.is_larger(prompt, MAX_PROMPT_BYTES):
        size = len(prompt.encode())
        raise InvalidArgumentError(
            "PROMPT_TOO_LARGE",
            f"prompt has {size} bytes and may have {MAX_PROMPT_BYTES}: shorten it",
            field="prompt",
        )
    if request.id:
        check_id(request.id)
    if len(request.request_id) > _REQUEST_ID.max_length or not _is_plain(request.request_id):
        raise InvalidArgumentError(
            "ID_INVALID",
            f"request_id has {len(request.request_id)} characters: it may have {_REQUEST_ID.max_length}, "
            "all of them printable",
            field="request_id",
        )
    _check_labels(request.labels)
    return NewInstance(
        id=request.id or fallback_id,
        prompt=prompt,
        config=config.resolve(request.config, base),
        labels=dict(request.labels),
        request_id=request.request_id,
        request_digest=_digest(request),
        origin=origin,
    )


def check_id(instance_id: str, field: str = "id") -> None:
    """Raise InvalidArgumentError (ID_INVALID) unless it can be an instance's id."""
    if not plan.ID.fullmatch(instance_id):
        raise InvalidArgumentError(
            "ID_INVALID", f"{field} {instance_id[:120]!r} does not match {plan.ID.pattern}", field=field
        )


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _LABELS.max_items:
        raise InvalidArgumentError(
            "CONFIG_INVALID",
            f"there are {len(labels)} labels; there may be {_LABELS.max_items}",
            field="labels",
        )
    for key, value in labels.items():
        fits = len(value) <= _LABELS.max_length and _is_plain(value)
        if not fits or not re.fullmatch(_LABELS.pattern, key):
            raise InvalidArgumentError(
                "CONFIG_INVALID",
                f"label {key[:80]!r} must have a key matching {_LABELS.pattern} "
                f"and a value of at most {_LABELS.max_length} printable characters",
                field=f"labels[{key[:80]}]",
            )


def _is_plain(text: str) -> bool:
    return not text or text.isprintable()


def _digest(request: CreateInstanceRequest) -> bytes:
    if not request.request_id:
        return b""
    bare = CreateInstanceRequest()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()
