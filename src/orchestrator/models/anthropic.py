"""Anthropic's models by their own API: `POST {base}/v1/messages`.

A plan's schema holds the model where it supports structured outputs; an older model is made to call a tool
whose arguments are the plan, and what it would call it with is the answer.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from orchestrator.core.prompts import Prompt
from orchestrator.models.base import ModelRequest
from orchestrator.models.endpoint import HttpProvider, Said, count
from orchestrator.models.http import IDLE_TIMEOUT_S
from orchestrator.models.structured import Dialect

VERSION: Final = "2023-06-01"
"""The API's version: there has been no other since."""

_CUT: Final = ("max_tokens", "model_context_window_exceeded")
_INPUT_TOKENS: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""What was read from a cache, or written to one, was input too, and is not counted with the rest of it."""

_TOOL: Final = "plan"
_SUPPORTED: Final = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
        *("anyOf", "allOf", "$ref", "$defs", "description", "title", "format"),
    }
)
"""The schema's keywords that structured outputs know; they refuse a schema with any other."""


class Anthropic(HttpProvider):
    """A Provider for one endpoint."""

    path: ClassVar[str] = "v1/messages"
    first_dialect: ClassVar[Dialect] = Dialect(rungs=("json_schema", "tool", "prompt"))

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        api_key: str = "",
        key_variable: str = "",
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """See HttpProvider."""
        super().__init__(
            name,
            # Some write the address with the version, as other APIs want it.
            base_url.rstrip("/").removesuffix("/v1"),
            headers={"anthropic-version": VERSION, **({"x-api-key": api_key} if api_key else {})},
            api_key=api_key,
            key_variable=key_variable,
            idle_timeout_s=idle_timeout_s,
        )

    def _body(self, request: ModelRequest, dialect: Dialect) -> dict[str, object]:
        prompt = request.prompt
        body: dict[str, object] = {
            "model": request.model,
            "max_tokens": request.token_limit,
            "messages": [
                {"role": message.role, "content": message.content}
                for message in prompt.messages
                if message.role != "system"
            ],
            **{name: value for name, value in prompt.sampling.items() if name not in dialect.left_out},
        }
        if system := _system(prompt):
            body["system"] = system
        if prompt.schema is None:
            return body
        match dialect.rungs[0]:
            case "json_schema":
                body["output_config"] = {
                    "format": {"type": "json_schema", "schema": _supported(prompt.schema)}
                }
            case "tool":
                told = "Hand in the plan."
                body["tools"] = [{"name": _TOOL, "description": told, "input_schema": prompt.schema}]
                body["tool_choice"] = {"type": "tool", "name": _TOOL}
        return body

    def _streaming(self) -> Mapping[str, object]:
        return {"stream": True}

    def _said(self, body: Mapping[str, Any], request: ModelRequest) -> Said | None:  # noqa: ARG002
        usage = body.get("usage")
        used = (sum(count(usage, name) for name in _INPUT_TOKENS), count(usage, "output_tokens"))
        blocks = body.get("content")
        if not isinstance(blocks, list):
            return None
        refusal = None
        if body.get("stop_reason") == "refusal":
            details = body.get("stop_details")
            refusal = str((details if isinstance(details, dict) else {}).get("explanation") or "")
        return Said("".join(map(_text, blocks)), body.get("stop_reason") in _CUT, refusal, used)

    def _draft(self) -> "_Draft":
        return _Draft()


class _Draft:
    """A message that is being streamed."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._usage: dict[object, object] = {}
        self._ending: dict[object, object] = {}

    @property
    def is_whole(self) -> bool:
        """Whether a stop_reason has come, which it does when all blocks are complete."""
        return bool(self._ending.get("stop_reason"))

    def add(self, event: Mapping[str, Any]) -> str:
        """Take in an event of any type; those that say nothing to us are passed over."""
        match event:
            case {"type": "message_start", "message": {"usage": {**usage}}}:
                self._usage |= usage
            case {"type": "message_delta", "delta": {**ending}}:
                self._ending |= ending
                match event:
                    # Totals, not what was added; what it does not count again stays as it was.
                    case {"usage": {**totals}}:
                        self._usage |= totals
            case {"type": "content_block_delta", "delta": {"text": str(text)} | {"partial_json": str(text)}}:
                self._texts.append(text)
                return text
        return ""

    def body(self) -> Mapping[str, Any]:
        """The message as far as it has come."""
        text = {"type": "text", "text": "".join(self._texts)}
        return {
            "content": [text],
            "usage": self._usage,
            "stop_reason": self._ending.get("stop_reason"),
            "stop_details": self._ending.get("stop_details"),
        }


def _system(prompt: Prompt) -> str:
    return "\n\n".join(message.content for message in prompt.messages if message.role == "system")


def _text(block: object) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "tool_use", "input": arguments}:
            return json.dumps(arguments, ensure_ascii=False)
        case _:
            return ""


def _supported(schema: Any) -> Any:
    """A schema without what structured outputs refuse: lengths and patterns, which are checked here too."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {name: value for name, value in schema.items() if name in _SUPPORTED}
    for name in ("properties", "$defs"):
        if name in kept:
            kept[name] = {key: _supported(value) for key, value in kept[name].items()}
    for name in ("anyOf", "allOf"):
        if name in kept:
            kept[name] = [_supported(value) for value in kept[name]]
    if "items" in kept:
        kept["items"] = _supported(kept["items"])
    return kept
