"""How a model is asked for JSON: a ladder that is climbed down as an endpoint refuses.

The rungs are `json_schema`, where the endpoint holds the model to the schema, `json_object`, where it only
sees to it that the answer is JSON, and `prompt`, where the prompt alone asks. The schema's text is in the
prompt on every rung and the plan is validated here, so that a lower rung costs quality, never safety.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

REJECTED: Final = frozenset({400, 422})
"""The statuses with which endpoints refuse a parameter."""

_FORMAT_WORDS: Final = (
    "response_format",
    "json_schema",
    "json_object",
    "structured output",
    "grammar",
    "schema",
)
_LOWER: Final[Mapping[str, Literal["json_object", "prompt"]]] = {
    "json_schema": "json_object",
    "json_object": "prompt",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The parameters that a model at an endpoint understands; the default is what most of them do."""

    format: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105  no password

    def response_format(self, schema: Mapping[str, object]) -> Mapping[str, object] | None:
        """What to send as `response_format`; None: leave it out."""
        match self.format:
            case "json_schema":
                return {
                    "type": "json_schema",
                    "json_schema": {"name": "plan", "schema": schema, "strict": True},
                }
            case "json_object":
                return {"type": "json_object"}
            case "prompt":
                return None

    def after(self, rejection: str, *, asked_for_json: bool) -> "Dialect | None":
        """The dialect to try next, given a refusal's text; None where the refusal is about another thing."""
        text = rejection.lower()
        # OpenAI's reasoning models know the limit only by its newer name, which no other endpoint knows.
        if self.token_limit == "max_tokens" and "max_completion_tokens" in text:  # noqa: S105
            return replace(self, token_limit="max_completion_tokens")  # noqa: S106
        if asked_for_json and self.format in _LOWER and any(word in text for word in _FORMAT_WORDS):
            return replace(self, format=_LOWER[self.format])
        return None
