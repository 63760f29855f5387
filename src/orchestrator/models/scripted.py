"""Models that answer at once from a script: for tests, benchmarks and trying the service out.

Scripted()                                        # a plan of five subtasks, canned answers
Scripted(subtasks=2)
Scripted(lambda request: "only this")             # every answer from a function
Scripted(lambda request: in_pieces("slowly", per_s=50))   # written at that pace
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from orchestrator.core.prompts import FULL, Profile
from orchestrator.core.replies import ModelReply
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest, TextCallback, timed_out

Answer = str | ModelReply | ModelError | AsyncIterator[str]
"""What a model says: all at once, or as an iterator gives it piece by piece, until it raises a ModelError."""

Script = Callable[[ModelRequest], Answer | Awaitable[Answer]]

SUMMARY: Final = "The parts fit together by number."


class Scripted:
    """A Provider whose answers come from a function of the request; a ModelError it gives is raised.

    The function may be asynchronous: a call then takes as long as the function waits. Or it is a generator of
    pieces: a call takes as long as they all take, emitted or not. `request.prompt.role` and
    `request.prompt.subtask_id` tell it what is asked.
    """

    def __init__(self, script: Script | None = None, *, subtasks: int = 5) -> None:
        """Without a script, plan so many independent subtasks and answer the rest with canned text."""
        self._script = script
        self._plan = plan_text(subtasks)

    @property
    def profile(self) -> Profile:
        """As for any large model."""
        return FULL

    def check(self, model: str) -> None:
        """Accept every model."""

    async def complete(self, request: ModelRequest, on_text: TextCallback | None = None) -> ModelReply:
        """Answer one request; raise the script's ModelError where it gives one."""
        answer = self._canned(request) if self._script is None else self._script(request)
        if isinstance(answer, str):
            return _emit_reply(ModelReply(answer), on_text)
        try:
            async with asyncio.timeout(request.timeout_s):
                if isinstance(answer, Awaitable):
                    answer = await answer
                if isinstance(answer, AsyncIterator):
                    return ModelReply(await _collect(answer, on_text))
        except TimeoutError:
            raise timed_out("the script", request.timeout_s) from None
        if isinstance(answer, ModelError):
            raise answer
        return _emit_reply(ModelReply(answer) if isinstance(answer, str) else answer, on_text)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""

    def _canned(self, request: ModelRequest) -> str:
        match request.prompt.role:
            case "planning":
                return self._plan
            case "work":
                return f"The output of {request.prompt.subtask_id}."
            case "synthesis":
                return "# The result\n\nAll parts, put together."


def _emit_reply(reply: ModelReply, on_text: TextCallback | None) -> ModelReply:
    if on_text is not None:
        on_text(reply.text)
    return reply


async def _collect(pieces: AsyncIterator[str], on_text: TextCallback | None) -> str:
    said = []
    async for piece in pieces:
        said.append(piece)
        if on_text is not None:
            on_text(piece)
    return "".join(said)


async def in_pieces(text: str, *, per_s: float, characters: int = 4) -> AsyncIterator[str]:
    """Return a text as a model writes it: so many pieces a second, of as many characters as a token has."""
    for start in range(0, len(text), characters):
        await asyncio.sleep(1 / per_s)
        yield text[start : start + characters]


def plan_text(subtasks: int, *, chained: bool = False) -> str:
    """Return a planner's answer with subtasks `t1`, `t2`, …; chained: each depends on the one before it."""
    return json.dumps(
        {
            "summary": SUMMARY,
            "subtasks": [
                {
                    "id": f"t{number}",
                    "title": f"Part {number}",
                    "instructions": f"Write part {number} of {subtasks}.",
                    "depends_on": [f"t{number - 1}"] if chained and number > 1 else [],
                    "worker": "",
                }
                for number in range(1, subtasks + 1)
            ],
        }
    )
