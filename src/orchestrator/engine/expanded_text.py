"""The text of a synthesis as clients see it: with whole files where the model writes references to them."""

from orchestrator.core.references import Expander, References
from orchestrator.engine.joined_text import JoinedTextCallback


class ExpandedText:
    """Expands a synthesis while it is written, and passes on what there is to see: a JoinedTextCallback."""

    def __init__(self, references: References, recorded: str, on_text: JoinedTextCallback) -> None:
        """Go on behind `recorded`, what the model has written of the answer already."""
        self._references = references
        self._recorded = recorded
        self._on_text = on_text
        self._expander = self._begin(recorded)
        self._is_restart = False
        self._replaces = False
        self._has_text = False

    def __call__(self, piece: str, *, is_restart: bool = False, replaces: bool = False) -> None:
        """Take the next piece of what the model writes."""
        self._has_text = True
        if replaces:
            self._expander = self._begin("")
            self._replaces, self._is_restart = True, False
        elif is_restart:
            self._expander = self._begin(self._recorded)
            self._is_restart = True
        self._pass_on(self._expander.feed(piece))

    def finish(self, added: str) -> None:
        """Pass on what was held back, and what is added to it: the answer is complete."""
        if self._has_text:
            self._pass_on(self._expander.finish() + added)

    def _begin(self, text: str) -> Expander:
        expander = Expander(self._references)
        expander.feed(text)
        return expander

    def _pass_on(self, text: str) -> None:
        if text:
            self._on_text(text, is_restart=self._is_restart, replaces=self._replaces)
            self._is_restart = self._replaces = False
