"""How a model is asked: a dialect that gets plainer as an endpoint refuses what it does not understand.

For JSON there is a ladder. Its upper rungs hold the model to the schema (`json_schema`) or to the arguments
of a tool that it has to call (`tool`), `json_object` only sees to it that the answer is JSON, and on `prompt`
the prompt alone asks. The schema's text is in the prompt on every rung and the plan is validated here, so
that a lower rung costs quality, never safety.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

REJECTED: Final = frozenset({400, 422})
"""The statuses with which endpoints refuse a parameter."""

Rung = Literal["json_schema", "json_object", "tool", "prompt"]

_ABOUT_FORMAT: Final = (
    "response_format",
    "json_object",
    "json mode",
    "structured output",
    "grammar",
    "schema",
)
_WORDS: Final[Mapping[Rung, tuple[str, ...]]] = {
    "json_schema": (*_ABOUT_FORMAT, "output_config", "output_format", "output format"),
    "json_object": _ABOUT_FORMAT,
    "tool": ("tool", "schema"),
    "prompt": (),
}
"""By which words a refusal is known to be about the rung."""

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

    rungs: tuple[Rung, ...] = ("json_schema", "json_object", "prompt")
    """How JSON is asked for, from the top of the ladder that is left: the first one is used."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105  no password
    left_out: frozenset[str] = frozenset()
    """Parameters that are not sent, `stream` among them where the endpoint will not stream."""

    def after(self, rejection: str, sent: Mapping[str, object]) -> "Dialect | None":
        """The dialect to try next, given a refusal's text and the body that was refused.

        None where the refusal is about another thing.
        """
        text = rejection.lower()
        # OpenAI's reasoning models know the limit only by its newer name, which no other endpoint knows.
        if self.token_limit == "max_tokens" and "max_completion_tokens" in text:  # noqa: S105
            return replace(self, token_limit="max_completion_tokens")  # noqa: S106
        for name in sorted(sent.keys() - _NEEDED):
            if re.search(rf"\b{re.escape(name)}\b", text) or (name == "stream" and "streaming" in text):
                return replace(self, left_out=self.left_out | {name})
        is_asked_for_json = bool(sent.keys() & {"response_format", "output_config", "tools"})
        if is_asked_for_json and any(word in text for word in _WORDS[self.rungs[0]]):
            return replace(self, rungs=self.rungs[1:])
        return None
