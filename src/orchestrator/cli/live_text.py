"""The accumulated live text of an attempt; only its end is retained."""

from dataclasses import dataclass
from typing import Final

from orchestrator.client import OutputDelta

_MAX_CHARACTERS: Final = 4000
"""Characters retained per attempt: more than any terminal shows."""


@dataclass(frozen=True, slots=True)
class LiveText:
    """The text of one attempt; only its end is retained."""

    attempt: int = 0
    length: int = 0
    """Characters written so far, including those not retained."""
    text: str = ""

    def with_delta(self, delta: OutputDelta) -> "LiveText":
        """Return the text with a delta applied at its offset; duplicates and gaps are tolerated."""
        start = self.length - len(self.text)
        is_contiguous = delta.attempt == self.attempt and start <= delta.offset <= self.length
        prefix = self.text[: delta.offset - start] if is_contiguous else ""
        return LiveText(
            delta.attempt, delta.offset + len(delta.text), (prefix + delta.text)[-_MAX_CHARACTERS:]
        )
