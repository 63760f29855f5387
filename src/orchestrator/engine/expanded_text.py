"""The text of a synthesis as clients see it: with whole files where the model writes references to them."""

from collections.abc import Callable

from orchestrator.core.references import Expander, References
from orchestrator.engine.joined_text import JoinedTextCallback


class ExpandedText:
    """Expands a synthesis while it is written, and passes on what there is to see: a JoinedTextCallback."""

    def __init__(
        self, references: References, recorded: str, writer: Callable[[str], JoinedTextCallback]
    ) -> None:
        """Go on behind `recorded`, what the model has written of the answer already.

        `writer` is called once, with what is seen of that, and returns what takes the text behind it.
        """
        self._references = references
        self._recorded = recorded
        self._expander = Expander(references)
        self._on_text = writer(self._expander.feed(recorded))
        self._is_restart = False
        self._replaces = False
        self._has_text = False

    def __call__(self, piece: str, *, is_restart: bool = False, replaces: bool = False) -> None:
        """Take the next piece of what the model writes."""
        self._has_text = True
        if is_restart or replaces:
            self._expander = Expander(self._references)
            self._expander.feed("" if replaces else self._recorded)
            self._replaces |= replaces
            self._is_restart = not self._replaces
        self._pass_on(self._expander.feed(piece))

    def finish(self, added: str) -> None:
        """Pass on what was held back, and what is added to it: the answer is complete."""
        if self._has_text:
            self._pass_on(self._expander.finish() + added)

    def _pass_on(self, text: str) -> None:
        if text:
            self._on_text(text, is_restart=self._is_restart, replaces=self._replaces)
            self._is_restart = self._replaces = False
