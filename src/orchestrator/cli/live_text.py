"""What a model is writing: the end of an attempt's text, as far as it has been heard."""

from dataclasses import dataclass
from typing import Final

from orchestrator.client import OutputDelta

_KEPT: Final = 4000
"""Characters of an attempt that are remembered: more than any terminal shows of it."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The text of one attempt; only its end is kept."""

    attempt: int = 0
    length: int = 0
    """Characters written so far, those that are not kept included."""
    text: str = ""

    def after(self, delta: OutputDelta) -> "Draft":
        """The draft with a delta in its place. What was heard already does no harm, nor does a gap."""
        begin = self.length - len(self.text)
        follows = delta.attempt == self.attempt and begin <= delta.offset <= self.length
        before = self.text[: delta.offset - begin] if follows else ""
        return Draft(delta.attempt, delta.offset + len(delta.text), (before + delta.text)[-_KEPT:])
