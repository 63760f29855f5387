"""The values an instance is made of: its state, its subtasks, their work, usage and failures.

Only `fold` in core/state.py changes an instance; elsewhere a value can be kept, compared and shared without a
copy. Times are seconds since the epoch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.core.origin import NO_ORIGIN, Origin
from orchestrator.v1 import instance_pb2 as pb

State: TypeAlias = pb.State.ValueType
SubtaskState: TypeAlias = pb.SubtaskState.ValueType

QUEUED: Final = pb.STATE_QUEUED
RUNNING: Final = pb.STATE_RUNNING
PAUSED: Final = pb.STATE_PAUSED
WAITING_FOR_PAUSE: Final = pb.STATE_WAITING_FOR_PAUSE
WAITING: Final = pb.STATE_WAITING
COMPLETE: Final = pb.STATE_COMPLETE
ERRORED: Final = pb.STATE_ERRORED
TERMINATED: Final = pb.STATE_TERMINATED
TERMINAL: Final = frozenset({COMPLETE, ERRORED, TERMINATED})
RESTING: Final = TERMINAL | {PAUSED, WAITING}
"""The states in which there is nothing to do until a client asks for something."""

PENDING: Final = pb.SUBTASK_STATE_PENDING
IN_PROGRESS: Final = pb.SUBTASK_STATE_RUNNING
COMPLETED: Final = pb.SUBTASK_STATE_COMPLETED
FAILED: Final = pb.SUBTASK_STATE_FAILED
SKIPPED: Final = pb.SUBTASK_STATE_SKIPPED
SETTLED: Final = frozenset({COMPLETED, FAILED, SKIPPED})

TOO_LONG: Final = "INPUT_TOO_LONG"
"""The reason of an attempt at which the model was given more than it takes."""
INTERRUPTED: Final = "INTERRUPTED"
"""The reason of an attempt that was cut off by a crash or a stop, not by its own failure."""
TRUNCATED: Final = "OUTPUT_TRUNCATED"
"""The reason of an attempt whose answer was cut off at the token limit, and is not continued."""
RESULT_INVALID: Final = "RESULT_INVALID"
DISCARDED: Final = frozenset({"PLAN_INVALID", RESULT_INVALID})
"""The reasons of an attempt whose whole answer, all parts of it, is not what was asked for."""
UNUSABLE: Final = DISCARDED | {"OUTPUT_INVALID"}
"""Those and the reason of one to which the endpoint sent no answer at all."""


class Usage(NamedTuple):
    """What model calls have used."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    cost_usd: float = 0.0

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.model_calls + other.model_calls,
            self.cost_usd + other.cost_usd,
        )

    def minus(self, other: "Usage") -> "Usage":
        """Return the difference, at least zero."""
        return Usage._make(max(0, mine - theirs) for mine, theirs in zip(self, other, strict=True))


NO_USAGE: Final = Usage()
CUT_OFF: Final = Usage(model_calls=1)
"""The usage of an interrupted call: it is paid for, but its token counts are unknown."""


class Failure(NamedTuple):
    """Why something failed; `reason` is UPPER_SNAKE_CASE."""

    reason: str
    message: str
    subtask_id: str = ""


WorkKind: TypeAlias = Literal["planning", "subtask", "synthesis"]


class WorkKey(NamedTuple):
    """Which piece of an instance's work: planning, a subtask (a merge is one too), or the synthesis."""

    kind: WorkKind
    subtask_id: str = ""


@lru_cache(4096)
def subtask_key(subtask_id: str) -> WorkKey:
    """Return the key of a subtask's work; most plans name their subtasks alike."""
    return WorkKey("subtask", subtask_id)


PLANNING: Final = WorkKey("planning")
SYNTHESIS: Final = WorkKey("synthesis")


class Work(NamedTuple):
    """How a piece of work stands, and what the model calls that carry it out have come to."""

    state: SubtaskState = PENDING
    attempt: int = 0
    """The number of the latest attempt, from 1; 0: none yet."""
    failures: int = 0
    """Attempts that failed of themselves; interrupted ones do not count."""
    too_long: int = 0
    """Attempts that failed because the model was given more than it takes."""
    invalid: int = 0
    """Attempts whose answer was something else than was asked for."""
    raised_limits: int = 0
    """How often it is to be tried with twice the token limit."""
    parts: int = 0
    """Parts of the latest attempt that are recorded: answers that were cut off at the token limit."""
    text: str = ""
    """What is recorded of an incomplete answer, by all attempts: the next part goes on behind it."""
    model: str = ""
    error: Failure | None = None
    retry_time_s: float = 0.0
    """The next attempt must not begin earlier."""
    fail_time_s: float = 0.0
    """When the latest attempt failed that is to be followed by another."""
    start_time_s: float = 0.0
    """When the first attempt began; 0: not yet."""
    end_time_s: float = 0.0
    usage: Usage = NO_USAGE

    def reset(self) -> "Work":
        """Return the same work for a new try: attempts continue to count, failures restart at 0."""
        return Work(attempt=self.attempt, usage=self.usage, too_long=self.too_long, text=self.text)


NOT_STARTED: Final = Work()
NO_CRASHES: Final[Mapping[WorkKey, int]] = MappingProxyType({})


class Subtask(NamedTuple):
    """One part of the plan."""

    id: str
    title: str
    instructions: str
    depends_on: tuple[str, ...] = ()
    worker: str = ""
    work: Work = NOT_STARTED
    output: str = ""
    merges: bool = False
    """Whether it is no part of the plan but puts outputs together; see core/merging.py."""
    files: tuple[str, ...] = ()
    """The paths of the input files that its worker is given."""

    @property
    def key(self) -> WorkKey:
        """Which piece of work it is."""
        return subtask_key(self.id)

    @property
    def definition(self) -> tuple[object, ...]:
        """What the plan says of it."""
        return (self.id, self.title, self.instructions, self.depends_on, self.worker, self.files)


class InputFile(NamedTuple):
    """A text file that an instance is given."""

    path: str
    content: str
    language: str
    """As in `python`; empty: unknown."""
    size_bytes: int
    """Of the content, in UTF-8."""
    sha256: str
    """Of the content, in hexadecimal digits."""


class Predecessor(NamedTuple):
    """The finished instance that another one goes on from, as it was."""

    id: str
    prompt: str
    final_result: str


EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(slots=True)
class Instance:
    """The folded state of an instance. Only `fold` mutates one, before it is shared.

    It is copied with each step; with slots a copy takes 0.3 KB. A `__dict__` of over 30 keys takes 1.6 KB.
    """

    id: str = ""
    state: State = pb.STATE_UNSPECIFIED
    prompt: str = ""
    config: pb.InstanceConfig = field(default_factory=pb.InstanceConfig)
    """As recorded: resolved, but for a catalogue that it names; never changed in place."""
    workers: tuple[pb.Worker, ...] = ()
    """The catalogue of workers in force: the config's own, or the one that it names."""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    forked_from: str = ""
    files: tuple[InputFile, ...] = ()
    """What it is given to work on, in the order in which the client brought it."""
    predecessor: Predecessor | None = None
    request_id: str = ""
    request_digest: bytes = b""
    origin: Origin = NO_ORIGIN
    """Of the request that created it."""
    planning: Work = NOT_STARTED
    is_planned: bool = False
    is_reviewed: bool = False
    feedback: str = ""
    """What a reviewer wants of the next plan."""
    summary: str = ""
    subtasks: Mapping[str, Subtask] = field(default_factory=lambda: EMPTY)
    reusable: Mapping[str, Subtask] = field(default_factory=lambda: EMPTY)
    """Completed subtasks of plans whose attempt failed: paid for, should the next plan have them too."""
    failed_plans: int = 0
    """Planning attempts whose answer was no plan, or that failed once work on the plan could have started."""
    plan_fault: str = ""
    """What the planner has to mend: the fault of its last answer that was no plan, until there is one."""
    synthesis: Work = NOT_STARTED
    final_result: str = ""
    usage: Usage = NO_USAGE
    """Since the last restart; what a fork copied is included."""
    own_usage: Usage = NO_USAGE
    """Of all calls that this instance made itself."""
    copied_events: int = 0
    """How many events behind the first one a fork copied from its source."""
    error: Failure | None = None
    crashes: Mapping[WorkKey, int] = field(default_factory=lambda: NO_CRASHES)
    """How often in a row the process crashed at each piece of work, since anything was completed."""
    pause_cause: Failure | None = None
    """Why the service itself asked to pause, if it did."""
    create_time_s: float = 0.0
    start_time_s: float = 0.0
    end_time_s: float = 0.0
    update_time_s: float = 0.0
    last_sequence: int = 0

    def work(self, key: WorkKey) -> Work:
        """Return the progress of a piece of work; one that is not recorded has not started."""
        if key.kind == "subtask":
            subtask = self.subtasks.get(key.subtask_id)
            return subtask.work if subtask else NOT_STARTED
        return self.planning if key.kind == "planning" else self.synthesis

    @property
    def works(self) -> Iterator[tuple[WorkKey, Work]]:
        """All pieces of work, the subtasks before the planning that they belong to."""
        for subtask in self.subtasks.values():
            yield subtask.key, subtask.work
        yield PLANNING, self.planning
        yield SYNTHESIS, self.synthesis

    @property
    def paths(self) -> frozenset[str]:
        """The paths of the input files."""
        return frozenset(file.path for file in self.files)

    @property
    def given_characters(self) -> int:
        """How many characters its input files and its predecessor have."""
        before = self.predecessor
        earlier = len(before.prompt) + len(before.final_result) if before else 0
        return earlier + sum(len(file.content) for file in self.files)

    @property
    def is_awaiting_review(self) -> bool:
        """Whether a person has to look at the plan before work goes on."""
        return (
            self.is_planned and self.config.review_plan and not self.is_reviewed and not self.config.subtasks
        )

    @property
    def has_open_calls(self) -> bool:
        """Whether any model call is under way."""
        return self.open_calls > 0

    @property
    def open_calls(self) -> int:
        """How many model calls are under way."""
        return sum(work.state == IN_PROGRESS for _, work in self.works)


def seconds_of(time: Timestamp) -> float:
    """Read the wire's time, in seconds since the epoch."""
    return time.seconds + time.nanos / 1e9


def usage_of(message: pb.Usage) -> Usage:
    """Read the wire's usage."""
    return Usage(message.input_tokens, message.output_tokens, message.model_calls, message.cost_usd)


def subtask_of(message: pb.Subtask) -> Subtask:
    """Read the definition of a subtask."""
    return Subtask(
        id=message.id,
        title=message.title or message.id,
        instructions=message.instructions,
        depends_on=tuple(message.depends_on),
        worker=message.worker,
        files=tuple(message.files),
    )


def input_file_of(message: pb.File) -> InputFile:
    """Read a recorded input file."""
    return InputFile(message.path, message.content, message.language, message.size_bytes, message.sha256)


def failure_of(message: pb.Failure) -> Failure:
    """Read the wire's failure."""
    return Failure(message.reason, message.message, message.subtask_id)
