"""How a run is told while it goes on: drawn live, as lines, or as JSON."""

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
from orchestrator.cli.live_text import Draft
from orchestrator.cli.progress import Progress
from orchestrator.cli.text import duration, one_line, strip_controls
from orchestrator.client import Event, OutputDelta, ServiceError
from orchestrator.v1.orchestrator_pb2 import StreamEventsResponse

_REFRESHES_PER_SECOND: Final = 8


class Reporter(Protocol):
    """Told of each event, after the progress has taken it in."""

    def note(self, line: str) -> None:
        """Say something beside the events."""

    def show(self, event: Event, progress: Progress) -> None:
        """Tell an event."""

    def hear(self, delta: OutputDelta) -> None:
        """Tell a piece of text that a model has just written."""

    def connection(self, error: ServiceError | None) -> None:
        """Tell that the service is away, and with None that it is back: a client's `on_cut`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def choose(*, as_json: bool, where: str = "") -> Reporter:
    """The way that suits whoever listens on stderr; `where` as of `drawn`."""
    if as_json:
        return JsonReporter()
    return drawn(where) or LineReporter()


def drawn(where: str = "") -> "LiveReporter | None":
    """The drawing; None where stderr is no terminal that can be drawn on.

    `where` is the flag that leads the commands it names to the same service.
    """
    console = terminal(stderr=True)
    return LiveReporter(console, where) if console.is_terminal and not console.is_dumb_terminal else None


def terminal(*, stderr: bool = False) -> Console:
    """A console that reads no markup into what it is given."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_markdown(text: str) -> None:
    """Print Markdown as it is; in a terminal, which it must not steer, with control characters spelt out."""
    shown = strip_controls(text) if sys.stdout.isatty() else text
    sys.stdout.write(shown.removesuffix("\n") + "\n")
    sys.stdout.flush()


def print_json(message: Message) -> None:
    """Print a message on one line: proto JSON, ASCII only, so that no terminal is steered by it."""
    print(MessageToJson(message, indent=None), flush=True)  # noqa: T201  the answer itself


class _Plain:
    _is_away = False

    def hear(self, delta: OutputDelta) -> None:
        """Wait for the whole text: lines cannot be taken back."""

    def connection(self, error: ServiceError | None) -> None:
        """Print a line when the service goes and one when it is back."""
        if error is None:
            self.note("the service is back")
        elif not self._is_away:
            self.note(f"the service is away, reconnecting…: {error}")
        self._is_away = error is not None

    def note(self, line: str) -> None:
        """Print the line on stderr."""
        print(one_line(line), file=sys.stderr, flush=True)  # noqa: T201  the command's own voice

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class JsonReporter(_Plain):
    """One event a line on stdout; notes go to stderr."""

    def show(self, event: Event, progress: Progress) -> None:  # noqa: ARG002  a Reporter's signature
        """Print the event."""
        print_json(event)

    def hear(self, delta: OutputDelta) -> None:
        """Print the text and its place, as the stream's message has it: `{"delta": {…}}`."""
        print_json(StreamEventsResponse(delta=delta))


class EventLines(_Plain):
    """One line an event on stdout: its sequence, its time of day, what happened."""

    def show(self, event: Event, progress: Progress) -> None:
        """Print the event."""
        clock = time.strftime("%H:%M:%S", time.localtime(event.event_time.seconds))
        print(f"{event.sequence:>4}  {clock}  {progress.describe(event)}", flush=True)  # noqa: T201  the answer


class LineReporter(_Plain):
    """One line an event on stderr, with the time since the instance was created."""

    def show(self, event: Event, progress: Progress) -> None:
        """Print the event."""
        time_s = event.event_time.ToNanoseconds() / 1e9
        elapsed = duration(time_s - (progress.instance.create_time_s or time_s))
        line = f"{elapsed:>7}  {progress.describe(event)}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201  the command's own voice


class LiveReporter:
    """The whole instance, redrawn in place on stderr."""

    def __init__(self, console: Console, where: str = "") -> None:
        self._console = console
        self._where = where
        self._progress = Progress()
        self._drafts: dict[str, Draft] = {}
        self._away_since_s: float | None = None
        self._ended = False
        self._live: Live | None = None

    def note(self, line: str) -> None:
        """Print the line above the drawing."""
        self._console.print(Text(one_line(line), style="dim"))

    def show(self, event: Event, progress: Progress) -> None:  # noqa: ARG002  the state tells it
        """Draw the new state with the next refresh."""
        self._progress = progress

    def hear(self, delta: OutputDelta) -> None:
        """Draw the end of the attempt's text with the next refresh."""
        draft = self._drafts.get(delta.subtask_id, Draft())
        self._drafts[delta.subtask_id] = draft.after(delta)

    def connection(self, error: ServiceError | None) -> None:
        """Draw for how long the service has been away."""
        self._away_since_s = (self._away_since_s or time.monotonic()) if error else None

    def __enter__(self) -> Self:
        self._console.print()
        self._ended = False
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
        self._ended = True
        if self._live:
            self._live.stop()

    def _draw(self) -> RenderableType:
        return view(
            self._progress.instance,
            time.time(),
            width=self._console.width,
            height=None if self._ended else self._console.height,
            drafts=self._drafts,
            away_s=time.monotonic() - self._away_since_s if self._away_since_s else None,
            where=self._where,
        )
