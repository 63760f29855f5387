"""Models that answer at once from a script: for tests, benchmarks and trying the service out.

Scripted()                                        # a plan of five subtasks, canned answers
Scripted(subtasks=2)
Scripted(lambda request: "only this")             # every answer from a function
"""

import json
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Final

from orchestrator.core.prompts import FULL, Profile
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelReply, ModelRequest

Answer = str | ModelReply | ModelError
Script = Callable[[ModelRequest], Answer | Awaitable[Answer]]

SUMMARY: Final = "The parts fit together by number."


class Scripted:
    """A Provider whose answers come from a function of the request; a ModelError it gives is raised.

    The function may be asynchronous: a call then takes as long as the function waits. `request.prompt.role`
    and `request.prompt.subtask_id` tell it what is asked.
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
        """Every model is there."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Answer one request; raise the script's ModelError where it gives one."""
        if self._script is None:
            return ModelReply(self._canned(request))
        answer = self._script(request)
        if isawaitable(answer):
            answer = await answer
        if isinstance(answer, ModelError):
            raise answer
        return ModelReply(answer) if isinstance(answer, str) else answer

    async def aclose(self) -> None:
        """There is nothing to let go of."""

    def _canned(self, request: ModelRequest) -> str:
        match request.prompt.role:
            case "planning":
                return self._plan
            case "work":
                return f"The output of {request.prompt.subtask_id}."
            case "synthesis":
                return "# The result\n\nAll parts, put together."


def plan_text(subtasks: int, *, chained: bool = False) -> str:
    """A planner's answer with subtasks `t1`, `t2`, …; chained: each depends on the one before it."""
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
