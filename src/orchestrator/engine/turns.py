"""A bound on how many model calls are open at once, shared fairly by all instances."""

from collections.abc import Callable


class Turns:
    """Grants so many turns at a time; when there are none left, instances wait in a queue.

    An instance that waits is asked again once a turn is free, and takes its place behind all others if it
    wants more: so one with many subtasks cannot starve others (round robin; Nagle, RFC 970).
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: dict[str, Callable[[], None]] = {}
        self._closed = False

    def take(self, instance_id: str, ask_again: Callable[[], None]) -> bool:
        """Take a turn if there is one; otherwise `ask_again` is called, once, when there may be."""
        if self._free and not self._closed:
            self._free -= 1
            return True
        self._waiting.setdefault(instance_id, ask_again)
        return False

    def give_back(self) -> None:
        """Let whoever waits have the turn."""
        self._free += 1
        while self._free and self._waiting and not self._closed:
            self._waiting.pop(next(iter(self._waiting)))()

    def close(self) -> None:
        """Grant no more."""
        self._closed = True
