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
from orchestrator.cli.progress import Progress
from orchestrator.cli.text import duration, one_line
from orchestrator.v1.event_pb2 import Event

_REFRESHES_PER_SECOND: Final = 8


class Reporter(Protocol):
    """Told of each event, after the progress has taken it in."""

    def note(self, line: str) -> None:
        """Say something beside the events."""

    def show(self, event: Event, progress: Progress) -> None:
        """Tell an event."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def choose(*, as_json: bool) -> Reporter:
    """The way that suits whoever listens on stderr."""
    if as_json:
        return JsonReporter()
    console = terminal(stderr=True)
    return LiveReporter(console) if console.is_terminal and not console.is_dumb_terminal else LineReporter()


def terminal(*, stderr: bool = False) -> Console:
    """A console that reads no markup into what it is given."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_json(message: Message) -> None:
    """Print a message on one line: proto JSON, ASCII only, so that no terminal is steered by it."""
    print(MessageToJson(message, indent=None), flush=True)  # noqa: T201  the answer itself


def print_event(event: Event, progress: Progress) -> None:
    """Print an event on one line of stdout: its sequence, its time of day, what happened."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.event_time.seconds))
    print(f"{event.sequence:>4}  {clock}  {progress.describe(event)}", flush=True)  # noqa: T201  the answer


class _Plain:
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

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress()
        self._ended = False
        # Rich draws from a thread of its own: states are immutable, so it always sees a whole one.
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=_REFRESHES_PER_SECOND,
            redirect_stdout=False,
        )

    def note(self, line: str) -> None:
        """Print the line above the drawing."""
        self._console.print(Text(one_line(line), style="dim"))

    def show(self, event: Event, progress: Progress) -> None:  # noqa: ARG002  the state tells it
        """Draw the new state with the next refresh."""
        self._progress = progress

    def __enter__(self) -> Self:
        self._console.print()
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._live.stop()

    def _draw(self) -> RenderableType:
        size = self._console.size
        height = 1000 if self._ended else size.height
        return view(self._progress.instance, time.time(), width=size.width, height=height)
