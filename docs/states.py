"""Draw how events change an instance's state, from the transition table.

python docs/states.py > docs/states.md
"""

from orchestrator.core.state import TRANSITIONS, WORK_END_EVENTS, WORK_START_EVENTS
from orchestrator.v1.instance_pb2 import STATE_UNSPECIFIED, State

PAGE = """\
# The states of an instance

Made from the transition table in `src/orchestrator/core/state.py` by `python docs/states.py`.

```mermaid
stateDiagram-v2
{arrows}
```

*A call begins* is any of {begins}; *a call ends* is any of {ends}. Behind an answer that was cut off
(`…_continued`) the same attempt calls again at once.
An event that no arrow shows cannot happen: a request for it is refused with STATE_FORBIDS, and the log stays
as it was. Where an event has arrows to several states, `WAITING` holds while the plan awaits review, `QUEUED`
while no work has started, and `RUNNING` otherwise.
"""


def name_of(state: State.ValueType) -> str:
    """The state's name in the diagram."""
    return "[*]" if state == STATE_UNSPECIFIED else State.Name(state).removeprefix("STATE_")


def label(kinds: list[str]) -> str:
    """Return the label of an arrow: events one by one, those of work grouped."""
    words = []
    for group, word in ((WORK_START_EVENTS, "a call begins"), (WORK_END_EVENTS, "a call ends")):
        if set(group) <= set(kinds):
            words.append(word)
            kinds = [kind for kind in kinds if kind not in group]
    return ", ".join(words + kinds)


def page() -> str:
    """The whole document."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for source, events in TRANSITIONS.items():
        for kind, targets in events.items():
            for target in targets:
                arrows.setdefault((name_of(source), name_of(target)), []).append(kind)
    return PAGE.format(
        arrows="\n".join(f"    {a} --> {b}: {label(kinds)}" for (a, b), kinds in arrows.items()),
        begins=", ".join(f"`{kind}`" for kind in WORK_START_EVENTS),
        ends=", ".join(f"`{kind}`" for kind in WORK_END_EVENTS),
    )


if __name__ == "__main__":
    print(page(), end="")
