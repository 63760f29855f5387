"""Metrics in Prometheus' text format: what happens is counted, how things stand is read at a scrape.

Every label has a bounded number of values: clients may name any number of models, so all but the first ones
are counted together.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Never

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import Instance
from orchestrator.core.wire import STATUS, WORK_EVENTS
from orchestrator.engine.base import Engine
from orchestrator.engine.observer import ObservedCall, Observer
from orchestrator.engine.scheduler import GateStatus
from orchestrator.log.base import EventLog
from orchestrator.telemetry.tallies import PREFIX, Distribution, Tally, gauge
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.instance_pb2 import Usage

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
"""The label of all models after the first ones."""
MAX_MODELS: Final = 50
_LOOP_PROBE_S: Final = 0.5
_DAY_S: Final = 86400

_SHORT_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_CALL_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_INSTANCE_S: Final = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)
_GROUP_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

_STAGES: Final = {
    name: (stage, outcome)
    for stage, names in WORK_EVENTS.items()
    for name, outcome in ((names.completed, "completed"), (names.failed, ""), (names.continued, "continued"))
}
"""Of each event with which a call ends: the stage, and how; empty: the reason of the failure."""
_ENDS: Final = {
    "instance_completed": "complete",
    "instance_errored": "errored",
    "instance_terminated": "terminated",
}


class BoundedNames:
    """Keeps the first names as they are, and gives one name to all others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        """Return the name, or OTHER."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


class Metrics(Observer):
    """Counts what happens."""

    def __init__(
        self, version: str = "", *, max_models: int = MAX_MODELS, now_s: Callable[[], float] = time.time
    ) -> None:
        self._version = version
        self._max_models = max_models
        self._models: dict[str, tuple[str, str]] = {}
        """The labels of the first models, by their names."""
        self._gate_names = BoundedNames(2 * max_models)
        self._now_s = now_s
        self._today_start_s = now_s()

        model = ("provider", "model")
        self._created = Tally("instances_created", "Instances created.")
        self._finished = Tally("instances_finished", "Instances that reached a terminal state.", "state")
        self._attempts = Tally("attempts", "Attempts at a piece of work that ended.", "stage", "outcome")
        self._calls = Tally("model_calls", "Model calls that ended.", *model, "stage", "outcome")
        self._continuations = Tally(
            "continuations", "Answers cut off at the token limit and continued.", *model, "stage"
        )
        self._tokens = Tally("tokens", "Tokens used.", *model, "direction")
        self._cost = Tally("cost_usd", "Dollars spent, where prices are known.", *model)
        self._gate_closings = Tally("gate_closings", "How often a gate closed.", "gate", "cause")
        self._streams = Tally("streams_ended", "Streams that ended.", "method", "code")

        self._duration = Distribution(
            "instance_duration_seconds", "From an instance's first call to its end.", _INSTANCE_S, "state"
        )
        self._queue_wait = Distribution("queue_wait_seconds", "How long admission took.", _CALL_S)
        self._call_duration = Distribution(
            "model_call_duration_seconds", "How long model calls took.", _CALL_S, *model, "stage"
        )
        self._first_text = Distribution(
            "model_first_text_seconds", "How long an answer's first text took.", _CALL_S, *model, "stage"
        )
        self._commit_duration = Distribution("commit_duration_seconds", "How long commits took.", _SHORT_S)
        self._commit_size = Distribution("commit_entries", "Appends and creations of a commit.", _GROUP_SIZES)
        self._rpc_duration = Distribution(
            "rpc_duration_seconds", "How long RPCs took, but for streams.", _SHORT_S, "method", "code"
        )
        self._loop_lag = Distribution(
            "event_loop_lag_seconds", "How late the event loop came to a timer.", _SHORT_S
        )

    def collect(self) -> Iterator[Metric]:
        """Return what was counted."""
        self.start_day()
        for counter in (
            self._created,
            self._finished,
            self._attempts,
            self._calls,
            self._continuations,
            self._tokens,
            self._cost,
            self._gate_closings,
            self._streams,
        ):
            yield counter.counter()
        yield self._tokens.since_mark("tokens_today", "Tokens used since today's start.")
        yield self._cost.since_mark("cost_usd_today", "Dollars spent since today's start.")
        for distribution in (
            self._duration,
            self._queue_wait,
            self._call_duration,
            self._first_text,
            self._commit_duration,
            self._commit_size,
            self._rpc_duration,
            self._loop_lag,
        ):
            yield distribution.histogram()
        yield single(
            "usage_today_start_timestamp_seconds",
            "Midnight (UTC), or when the service was started.",
            self._today_start_s,
        )
        yield labelled("build_info", "The running version.", "version", {self._version: 1})

    def on_recorded(self, ref: InstanceRef, instance: Instance, events: Sequence[Event]) -> None:  # noqa: ARG002
        """Count events; see Observer."""
        for event in events:
            kind = event.WhichOneof("payload")
            if kind in _STAGES:
                stage, outcome = _STAGES[kind]
                self._count_call(stage, outcome, getattr(event, kind))
            elif kind == "instance_created":
                self._created.add()
            elif kind in _ENDS:
                state = (_ENDS[kind],)
                self._finished.add(state)
                begin_s = instance.start_time_s or instance.create_time_s
                self._duration.observe(max(0.0, instance.end_time_s - begin_s), state)

    def _count_call(self, stage: str, outcome: str, payload: Any) -> None:
        if not payload.attempt:  # a plan that the client brought
            return
        model = self._model(payload.model)
        if outcome == "continued":
            self._continuations.add((*model, stage))
        else:
            self._attempts.add((stage, outcome or payload.error.reason))
        if payload.HasField("usage"):
            self._count_usage(model, payload.usage)

    def _count_usage(self, model: tuple[str, str], usage: Usage) -> None:
        self._tokens.add((*model, "input"), usage.input_tokens)
        self._tokens.add((*model, "output"), usage.output_tokens)
        self._cost.add(model, usage.cost_usd)

    def start_day(self) -> None:
        """Count today's usage from 0 if it is another day."""
        now_s = self._now_s()
        if now_s // _DAY_S != self._today_start_s // _DAY_S:
            self._today_start_s = now_s // _DAY_S * _DAY_S
            self._tokens.mark()
            self._cost.mark()

    def on_admitted(self, wait_s: float) -> None:
        """Count a wait; see Observer."""
        self._queue_wait.observe(wait_s)

    def on_call_ended(self, call: ObservedCall) -> None:
        """Count a call; see Observer."""
        labels = (*self._model(call.model), call.stage)
        self._calls.add((*labels, call.outcome))
        self._call_duration.observe(call.duration_s, labels)
        if call.first_text_s is not None:
            self._first_text.observe(call.first_text_s, labels)

    def on_gate_closed(self, name: str, wait_s: float, *, is_refusal: bool) -> None:  # noqa: ARG002
        """Count it; see Observer."""
        self._gate_closings.add((self.gate_name(name), "refusal" if is_refusal else "fault"))

    def on_commit(self, entries: int, duration_s: float) -> None:
        """Count a commit of so many appends and creations."""
        self._commit_duration.observe(duration_s)
        self._commit_size.observe(entries)

    def on_rpc_ended(self, method: str, code: str, duration_s: float, *, is_stream: bool) -> None:
        """Count an RPC by its name and the name of its status."""
        if is_stream:
            self._streams.add((method, code))
        else:
            self._rpc_duration.observe(duration_s, (method, code))

    async def probe_loop(self) -> Never:
        """Measure how late the event loop is, and see whether a day begins, now and then, until cancelled."""
        now_s = asyncio.get_running_loop().time
        while True:
            due_s = now_s() + _LOOP_PROBE_S
            await asyncio.sleep(_LOOP_PROBE_S)
            self._loop_lag.observe(max(0.0, now_s() - due_s))
            self.start_day()

    def gate_name(self, name: str) -> str:
        """Return the label of a gate."""
        return self._gate_names(name)

    def _model(self, name: str) -> tuple[str, str]:
        """Return the labels of `provider/model`; providers are the service's own, so they are few."""
        if known := self._models.get(name):
            return known
        provider, _, model = name.partition("/")
        if len(self._models) >= self._max_models:
            return provider, OTHER
        return self._models.setdefault(name, (provider, model))


class Exposition:
    """Answers scrapes."""

    def __init__(self, metrics: Metrics, log: EventLog, engine: Engine) -> None:
        self._metrics = metrics
        self._log = log
        self._engine = engine
        self._process = ProcessCollector(registry=None)

    async def render(self) -> bytes:
        """Write all metrics in the format of CONTENT_TYPE."""
        counts = await self._log.count_by_state()
        states = {name: counts.get(state, 0) for state, name in STATUS.items()}
        # Read here, where nothing changes meanwhile, and written in a thread.
        families = [
            labelled("instances", "Instances in the log, by state.", "state", states),
            *self._gauges(),
            *self._metrics.collect(),
            *self._process.collect(),
        ]
        return await asyncio.to_thread(write, families)

    def _gauges(self) -> Iterator[Metric]:
        load, log = self._engine.load(), self._log
        yield single("instances_active", "Instances admitted: as many may be at work.", load.active)
        yield single("queue_length", "Instances that wait for admission.", load.queued)
        yield from self._gates(load.gates)
        yield single("log_size_bytes", "Bytes of the event log on disk.", log.size_bytes())
        yield single("log_writable", "1 while the event log takes writes.", log.is_writable)
        readers = {"instance": log.notifier.readers_of_one, "all": log.notifier.readers_of_all}
        yield labelled("subscribers", "Readers that wait for commits.", "of", readers)
        lag = "How long the slowest reader has not read what was committed."
        yield single("stream_lag_seconds", lag, log.notifier.lag_s())

    def _gates(self, gates: Sequence[GateStatus]) -> Iterator[Metric]:
        named = [(self._metrics.gate_name(gate.name), gate) for gate in gates]
        for name, text, value_of in _GATE_METRICS:
            values = defaultdict[str, float](float)
            for gate_name, gate in named:
                if (value := value_of(gate)) is not None:
                    values[gate_name] += value
            yield labelled(name, text, "gate", values)


_GATE_METRICS: Final[Sequence[tuple[str, str, Callable[[GateStatus], float | None]]]] = (
    ("gate_limit", "How many calls a gate lets be open.", lambda gate: gate.limit),
    ("gate_rate", "How many calls a second a gate lets begin, if it paces.", lambda gate: gate.per_s),
    ("gate_closed", "1 while a gate lets no call begin.", lambda gate: gate.is_closed),
    ("gate_open_calls", "Calls that are open.", lambda gate: gate.open_calls),
    ("gate_waiting_instances", "Instances that wait for a call.", lambda gate: gate.waiting),
)


def write(families: Iterable[Metric]) -> bytes:
    """Write metrics as text."""
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry)


class _Collected(Collector):
    """What was collected already, for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def single(name: str, text: str, value: float) -> Metric:
    """Return one value as it is now."""
    return gauge(PREFIX + name, text, (), {(): value})


def labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return values as they are now, by their label."""
    return gauge(PREFIX + name, text, (label,), {(each,): value for each, value in values.items()})
