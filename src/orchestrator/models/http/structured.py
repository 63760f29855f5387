"""How a model is asked: a dialect that gets plainer as an endpoint refuses what it does not understand.

For JSON there is a ladder. Its upper rungs hold the model to the schema (`json_schema`) or to the arguments
of a tool that it has to call (`tool`), `json_object` only sees to it that the answer is JSON, and on `prompt`
the prompt alone asks. The schema's text is in the prompt on every rung and the plan is validated here, so
that a lower rung costs quality, never safety.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from orchestrator.core.prompts import Message, Prompt
from orchestrator.models.http.token_limits import is_too_long

REJECTED: Final = frozenset({400, 422})
"""The statuses with which endpoints refuse a parameter."""

Rung = Literal["json_schema", "json_object", "tool", "prompt"]

_ABOUT_FORMAT: Final = (
    "response_format",
    "structured output",
    "grammar",
    "schema",
    "json",
    "mime type",
    "guided",
    "constrain",
)
_WORDS: Final[Mapping[Rung, tuple[str, ...]]] = {
    "json_schema": (*_ABOUT_FORMAT, "output_config", "output_format", "output format"),
    "json_object": _ABOUT_FORMAT,
    "tool": ("tool", "schema"),
    "prompt": (),
}
"""By which words a refusal is known to be about the rung."""

_BROKEN_FORMAT: Final = re.compile(
    r"grammar|gbnf|json[ _-]?schema|(?:unsupported|from|invalid) schema|response_format|structured output"
    r"|guided[ _](?:json|decoding)|constrained decoding|\b(?:outlines|llguidance|fsm)\b"
)
"""What an endpoint that fails over the format, with whatever status, says of it."""

_SYSTEM: Final = r"\b(?:system|developer)\W{1,2}(?:role|message|prompt|instruction)s?\b"
_NO_SYSTEM_ROLE: Final = re.compile(
    rf"{_SYSTEM}[^\n]{{0,40}}?(?:unsupported|invalid|not (?:supported|enabled|allowed|available|permitted))"
    rf"|(?:not|n't) (?:support|allow|accept|take)[^\n]{{0,30}}?{_SYSTEM}"
    r"|roles must alternate|only user and assistant|'system' is not one of|should be 'user' or 'assistant'"
    r"|\brole\b[^\n]{0,40}?\bsystem\b[^\n]{0,20}?(?:unsupported|not (?:supported|allowed|valid|one of))"
    r"|(?:unsupported|invalid|unknown|unexpected)[^\n]{0,20} role\b"
)
"""How endpoints say that a model knows no system role."""

_ABOUT_ROLES: Final = re.compile(
    r"\bsystem(?:[ _-]?(?:instruction|prompt|message|role)s?)?\b|\broles?\b|first message"
)
"""By which words a rejection may be about the system role."""

_NEEDED: Final = frozenset(
    {
        *("model", "messages", "system", "max_tokens", "max_completion_tokens"),
        *("response_format", "output_config", "tools", "tool_choice"),
    }
)
"""Parameters without which a call makes no sense, or that the ladder deals with; others can be left out."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The parameters that a model at an endpoint understands; the default is what most of them do."""

    json_modes: tuple[Rung, ...] = ("json_schema", "json_object", "prompt")
    """How JSON is asked for, from the top of the ladder that is left: the first one is used."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105  no password
    omitted: frozenset[str] = frozenset()
    """Parameters that are not sent, `stream` among them where the endpoint will not stream."""
    has_system_role: bool = True
    """Whether there may be a system message; otherwise its text stands in front of the user's."""

    def adapt(self, prompt: Prompt) -> Prompt:
        """Return the prompt in the roles that there are."""
        return prompt if self.has_system_role else _without_system_role(prompt)

    def with_stream(self) -> "Dialect":
        """Return the dialect in which the endpoint is asked to stream again."""
        return replace(self, omitted=self.omitted - {"stream"})

    def after_rejection(
        self, words: str, sent: Mapping[str, Any], *, is_rejection: bool = True
    ) -> "Dialect | None":
        """Return the dialect to try next, given a refusal's words and the body that was refused.

        `is_rejection`: by its status it is about the request; otherwise only what can be nothing else is
        read out of it. None where the refusal is about another thing.
        """
        if self.has_system_role and _has_system_message(sent) and _NO_SYSTEM_ROLE.search(words):
            return replace(self, has_system_role=False)
        if is_rejection and (changed := self._after_rejection(words, sent)):
            return changed
        is_asked_for_json = bool(sent.keys() & {"response_format", "output_config", "tools"})
        if is_asked_for_json and (
            (is_rejection and any(word in words for word in _WORDS[self.json_modes[0]]))
            or _BROKEN_FORMAT.search(words)
        ):
            return replace(self, json_modes=self.json_modes[1:])
        may_be_role = is_rejection and _ABOUT_ROLES.search(words) and not is_too_long(words)
        if may_be_role and self.has_system_role and _has_system_message(sent):
            return replace(self, has_system_role=False)
        return None

    def _after_rejection(self, words: str, sent: Mapping[str, Any]) -> "Dialect | None":
        # OpenAI's reasoning models know the limit only by its newer name, which no other endpoint knows.
        is_older = self.token_limit == "max_tokens"  # noqa: S105
        if is_older and "max_completion_tokens" in words and not is_too_long(words):
            return replace(self, token_limit="max_completion_tokens")  # noqa: S106
        for name in sorted(sent.keys() - _NEEDED):
            if re.search(rf"\b{re.escape(name)}\b", words) or (name == "stream" and "streaming" in words):
                return replace(self, omitted=self.omitted | {name})
        return None


def _has_system_message(sent: Mapping[str, Any]) -> bool:
    return "system" in sent or any(message["role"] == "system" for message in sent["messages"])


def _without_system_role(prompt: Prompt) -> Prompt:
    system_texts = [message.content for message in prompt.messages if message.role == "system"]
    first, *others = [message for message in prompt.messages if message.role != "system"]
    return prompt._replace(messages=(Message("user", "\n\n".join([*system_texts, first.content])), *others))
