"""What a client may ask for when it creates an instance."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from orchestrator.core import config, decider, input_files, limits, plan
from orchestrator.core.files import result_files
from orchestrator.core.instance import COMPLETE, InputFile, Instance, Predecessor
from orchestrator.core.origin import NO_ORIGIN, Origin
from orchestrator.core.wire import STATUS, write_input_file
from orchestrator.errors import InvalidArgumentError, StateForbidsError
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest

MAX_PROMPT_BYTES: Final = limits.of(CreateInstanceRequest, "prompt").max_bytes
_REQUEST_ID: Final = limits.of(CreateInstanceRequest, "request_id")
_LARGE_BYTES: Final = 512 * 1024
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
    files: tuple[InputFile, ...] = ()
    predecessor: Predecessor | None = None
    origin: Origin = NO_ORIGIN
    tenant: str = ""
    """Whose it is: ids and request ids are unique within a tenant."""
    history: Sequence[Event] = ()
    """The events that a fork copies from its source, to follow InstanceCreated."""

    @property
    def is_large(self) -> bool:
        """Whether `begin` takes some milliseconds: then it belongs into a thread."""
        return sum(file.size_bytes for file in self.files) > _LARGE_BYTES

    @property
    def identity(self) -> Instance:
        """What tells whether the same request has made an instance before."""
        return Instance(id=self.id, request_id=self.request_id, request_digest=self.request_digest)

    def begin(self, now_s: float) -> tuple[Instance, Sequence[Event]]:
        """Return the new instance and its first events."""
        first = Event()
        created = first.instance_created
        created.prompt = self.prompt
        created.config.CopyFrom(self.config)
        created.labels.update(self.labels)
        created.request_id = self.request_id
        created.request_digest = self.request_digest
        created.forked_from = self.forked_from
        created.copied_events = len(self.history)
        for file in self.files:
            write_input_file(created.files.add(), file, content=True)
        if before := self.predecessor:
            created.predecessor.id = before.id
            created.predecessor.prompt = before.prompt
            created.predecessor.final_result = before.final_result
        self.origin.stamp([first])
        events = [first, *self.history]
        return decider.apply(Instance(id=self.id), events, now_s), events


def new_instance(
    request: CreateInstanceRequest,
    *,
    base: pb.InstanceConfig,
    fallback_id: str,
    origin: Origin = NO_ORIGIN,
    tenant: str = "",
) -> NewInstance:
    """Validate a request; raise InvalidArgumentError that names the field and the mend.

    Where it names an instance to go on from, what it has of that one is for `go_on_from` to add.
    """
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
    if request.continues:
        check_id(request.continues, "continues")
    _check_labels(request.labels)
    files = input_files.read(request.files) if request.files else ()
    takes_over_files = request.continues and not files
    paths = None if takes_over_files else frozenset(file.path for file in files)
    return NewInstance(
        id=request.id or fallback_id,
        prompt=prompt,
        config=config.resolve(request.config, base, paths),
        labels=dict(request.labels),
        request_id=request.request_id,
        request_digest=_digest(request, files),
        files=files,
        origin=origin,
        tenant=tenant,
    )


def go_on_from(new: NewInstance, finished: Instance) -> NewInstance:
    """Return a new instance that goes on from a finished one: with its prompt, its result and its files.

    Files are taken over as they are, however large, unless the new one has some of its own. What the finished
    one itself went on from is not. Raise StateForbidsError where it has no result, and
    InvalidArgumentError (PLAN_INVALID) where the client's own plan names none of the files.
    """
    if finished.state != COMPLETE:
        raise StateForbidsError(
            finished.id,
            state=STATUS[finished.state],
            action="continue",
            why=": it has no result to go on from",
        )
    files = new.files or tuple(
        input_files.input_file(file.path, file.content) for file in result_files(finished)
    )
    if new.config.subtasks:
        config.check_plan(new.config, frozenset(file.path for file in files))
    before = Predecessor(finished.id, finished.prompt, finished.final_result)
    return replace(new, files=files, predecessor=before)


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


def _digest(request: CreateInstanceRequest, files: Sequence[InputFile]) -> bytes:
    if not request.request_id:
        return b""
    bare = CreateInstanceRequest()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    bare.ClearField("files")  # a client may send what the service says of them as well
    whole = hashlib.sha256(bare.SerializeToString(deterministic=True))
    if files:
        whole.update(input_files.digest(files))
    return whole.digest()
