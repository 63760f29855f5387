"""What each role is told, and how its answer is read.

A *profile* fits the roles to a kind of model: `FULL` for models that follow instructions and a JSON schema,
`TINY` for one that can only fill in a few short strings. Prompts are versioned: the text is data to the
log's readers, so a change here bumps `VERSION`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from orchestrator.core.plan import Plan
from orchestrator.core.state import Instance, Subtask

VERSION = "1"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is told, the JSON schema its answer must fit (None: plain text), and how it samples."""

    messages: tuple[Message, ...]
    schema: Mapping[str, object] | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_output_tokens: int | None = None
    """The most this prompt's answer is worth; None: whatever the instance's configuration allows."""


class Profile(Protocol):
    """The three roles, fitted to a kind of model."""

    def plan(self, instance: Instance) -> Prompt:
        """Ask for a plan."""

    def read_plan(self, instance: Instance, text: str) -> Plan:
        """Read the planner's answer; raise PlanError that tells the planner what to mend."""

    def work(self, instance: Instance, subtask: Subtask) -> Prompt:
        """Ask a worker for one subtask."""

    def synthesize(self, instance: Instance) -> Prompt:
        """Ask for the final result."""

    def read_synthesis(self, instance: Instance, text: str) -> str:
        """Make the final result from the synthesiser's answer."""
