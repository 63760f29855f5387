"""The text of an answer that comes in several parts, as one text without a seam."""

from typing import Protocol

from orchestrator.core.joining import Joint


class JoinedTextCallback(Protocol):
    """Takes each piece of an attempt's text as it comes, as a TextCallback does of one call."""

    def __call__(self, piece: str, *, is_restart: bool = False, replaces: bool = False) -> None:
        """Take a piece.

        `is_restart`: all before it in the call is void. `replaces`: all before it in the attempt is, that of
        earlier parts too.
        """


class JoinedText:
    """Joins a call's text to what is recorded of the answer, and passes on what it adds: a TextCallback."""

    def __init__(self, recorded: str, on_text: JoinedTextCallback) -> None:
        """Join to `recorded`, what there is of the answer already."""
        self._recorded = recorded
        self._on_text = on_text
        self._joint = Joint(recorded)
        self._is_restart = False
        self._has_replaced = False

    def __call__(self, piece: str, *, is_restart: bool = False) -> None:
        """Take the next piece of the part."""
        if is_restart:
            self._joint = Joint(self._recorded)
            self._is_restart = not self._has_replaced
            if self._has_replaced:
                self._on_text(self._recorded, replaces=True)
                self._has_replaced = False
        self._pass_on(self._joint.feed(piece))

    def finish(self) -> None:
        """Pass on what was held back: the part is whole."""
        self._pass_on(self._joint.finish())

    def _pass_on(self, added: str) -> None:
        if not added:
            return
        replaces = self._joint.replaces and not self._has_replaced
        self._on_text(added, is_restart=self._is_restart and not replaces, replaces=replaces)
        self._has_replaced |= replaces
        self._is_restart = False
