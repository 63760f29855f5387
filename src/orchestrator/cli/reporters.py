"""Reporters of a running instance: a live view, lines, or JSON."""

import sys
import time
from types import TracebackType
from typing import Final, Protocol, Self

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.cli.display import view
from orchestrator.cli.live_text import LiveText
from orchestrator.cli.progress import Progress
from orchestrator.cli.text import duration, one_line, strip_controls
from orchestrator.client import Event, OutputDelta, ServiceError
from orchestrator.v1.orchestrator_pb2 import StreamEventsResponse

_REFRESHES_PER_SECOND: Final = 8


class Reporter(Protocol):
    """Notified of each event after the progress has applied it."""

    def note(self, line: str) -> None:
        """Print a note beside the events."""

    def on_event(self, event: Event, progress: Progress) -> None:
        """Report an event."""

    def on_delta(self, delta: OutputDelta) -> None:
        """Report a piece of text that a model has just written."""

    def on_connection(self, error: ServiceError | None) -> None:
        """Report a lost connection, and with None its return: the `on_disconnect` of a client."""

    def on_waiting(self, reason: str) -> None:
        """Report why nothing happens, as often as it is asked for; empty: something does."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def choose_reporter(*, as_json: bool, address_option: str = "") -> Reporter:
    """Choose the reporter that suits stderr; `address_option` as in `live_reporter`."""
    if as_json:
        return JsonReporter()
    return live_reporter(address_option) or LineReporter()


def live_reporter(address_option: str = "") -> "LiveReporter | None":
    """Build the live view; None where stderr is no terminal with cursor control.

    `address_option` makes the commands that it advises reach the same service.
    """
    console = build_console(stderr=True)
    return (
        LiveReporter(console, address_option)
        if console.is_terminal and not console.is_dumb_terminal
        else None
    )


def build_console(*, stderr: bool = False) -> Console:
    """Build a console that interprets no markup in its input."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_markdown(text: str) -> None:
    """Print Markdown as it is; in a terminal, which it must not steer, with control characters spelt out."""
    shown = strip_controls(text) if sys.stdout.isatty() else text
    sys.stdout.write(shown.removesuffix("\n") + "\n")
    sys.stdout.flush()


def print_json(message: Message) -> None:
    """Print a message on one line: proto JSON, ASCII only, so that no terminal is steered by it."""
    print(MessageToJson(message, indent=None), flush=True)  # noqa: T201  the answer itself


class _LineBase:
    _is_disconnected = False
    _is_waiting = False

    def on_delta(self, delta: OutputDelta) -> None:
        """Ignore live text: printed lines cannot be replaced."""

    def on_connection(self, error: ServiceError | None) -> None:
        """Print a line when the service goes and one when it is back."""
        if error is None:
            self.note("the service is back")
        elif not self._is_disconnected:
            self.note(f"the service is away, reconnecting…: {error}")
        self._is_disconnected = error is not None

    def on_waiting(self, reason: str) -> None:
        """Print a line when the instance begins to wait."""
        if reason and not self._is_waiting:
            self.note(f"it waits: {reason}")
        self._is_waiting = bool(reason)

    def note(self, line: str) -> None:
        """Print the line on stderr."""
        print(one_line(line), file=sys.stderr, flush=True)  # noqa: T201  the command's own voice

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class JsonReporter(_LineBase):
    """One event a line on stdout; notes go to stderr."""

    def on_event(self, event: Event, progress: Progress) -> None:  # noqa: ARG002  a Reporter's signature
        """Print the event."""
        print_json(event)

    def on_delta(self, delta: OutputDelta) -> None:
        """Print the delta as the message of the stream: `{"delta": {…}}`."""
        print_json(StreamEventsResponse(delta=delta))


class EventLines(_LineBase):
    """One line an event on stdout: its sequence, its time of day, what happened."""

    def on_event(self, event: Event, progress: Progress) -> None:
        """Print the event."""
        clock = time.strftime("%H:%M:%S", time.localtime(event.event_time.seconds))
        print(f"{event.sequence:>4}  {clock}  {progress.describe(event)}", flush=True)  # noqa: T201  the answer


class LineReporter(_LineBase):
    """One line an event on stderr, with the time since the instance was created."""

    def on_event(self, event: Event, progress: Progress) -> None:
        """Print the event."""
        time_s = event.event_time.ToNanoseconds() / 1e9
        elapsed = duration(time_s - (progress.instance.create_time_s or time_s))
        line = f"{elapsed:>7}  {progress.describe(event)}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201  the command's own voice


class LiveReporter:
    """The whole instance, redrawn in place on stderr."""

    def __init__(self, console: Console, address_option: str = "") -> None:
        self._console = console
        self._address_option = address_option
        self._progress = Progress()
        self._live_texts: dict[str, LiveText] = {}
        self._disconnected_since_s: float | None = None
        self._waiting_reason = ""
        self._has_ended = False
        self._live: Live | None = None

    def note(self, line: str) -> None:
        """Print the line above the drawing."""
        self._console.print(Text(one_line(line), style="dim"))

    def on_event(self, event: Event, progress: Progress) -> None:  # noqa: ARG002  the state holds it
        """Draw the new state with the next refresh."""
        self._progress = progress
        self._waiting_reason = ""

    def on_waiting(self, reason: str) -> None:
        """Draw the reason until something happens."""
        self._waiting_reason = reason

    def on_delta(self, delta: OutputDelta) -> None:
        """Draw the end of the attempt's text with the next refresh."""
        live_text = self._live_texts.get(delta.subtask_id, LiveText())
        self._live_texts[delta.subtask_id] = live_text.with_delta(delta)

    def on_connection(self, error: ServiceError | None) -> None:
        """Draw for how long the service has been away."""
        self._disconnected_since_s = (self._disconnected_since_s or time.monotonic()) if error else None

    def __enter__(self) -> Self:
        self._console.print()
        self._has_ended = False
        # Rich draws from a thread of its own: states are immutable, so it always sees a whole one.
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=_REFRESHES_PER_SECOND,
            redirect_stdout=False,
        )
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended = True
        if self._live:
            self._live.stop()

    def _draw(self) -> RenderableType:
        return view(
            self._progress.instance,
            time.time(),
            width=self._console.width,
            height=None if self._has_ended else self._console.height,
            live_texts=self._live_texts,
            disconnected_s=time.monotonic() - self._disconnected_since_s
            if self._disconnected_since_s
            else None,
            waiting_reason=self._waiting_reason,
            address_option=self._address_option,
        )
