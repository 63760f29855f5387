"""What can be said of an instance without reading its events: a row that the log keeps beside them."""

from typing import NamedTuple

from orchestrator.core import view
from orchestrator.core.instance import RESTING, Instance, State


class Summary(NamedTuple):
    """An instance as of its last event; written in the transaction that appends that event."""

    state: State
    end_time_s: float
    """Seconds since the epoch; 0: it is not finished."""
    view: bytes
    """A serialised pb.Instance in VIEW_BASIC, without the workers of a catalogue that it names.

    Empty while the instance is at work: it changes with every event then, and its state is at hand where it
    runs."""


def summarize(instance: Instance) -> Summary:
    """Summarise an instance as it is."""
    shown = b""
    if instance.state in RESTING:
        shown = view.instance(instance, in_list=True).SerializeToString()
    return Summary(instance.state, instance.end_time_s, shown)
