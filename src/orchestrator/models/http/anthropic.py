"""Anthropic's models by their own API: `POST {base}/v1/messages`.

A plan's schema holds the model where it supports structured outputs; an older model is made to call a tool
whose arguments are the plan, and what it would call it with is the answer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from orchestrator.core.prompts import Prompt
from orchestrator.core.replies import Finish
from orchestrator.models.base import ModelRequest
from orchestrator.models.http.address import Address
from orchestrator.models.http.endpoint import Content, HttpProvider, count, response_id
from orchestrator.models.http.finish import finish_of, reason_of
from orchestrator.models.http.streaming import Accumulator
from orchestrator.models.http.structured import Dialect

VERSION: Final = "2023-06-01"
"""The API's version: there has been no other since."""

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
    first_dialect: ClassVar[Dialect] = Dialect(json_modes=("json_schema", "tool", "prompt"))

    # Some write the address with the version, as other APIs want it.
    endings: ClassVar[Sequence[str]] = ("v1/messages", "v1")

    def _headers(self, api_key: str, address: Address) -> Mapping[str, str]:  # noqa: ARG002
        return {"anthropic-version": VERSION, **({"x-api-key": api_key} if api_key else {})}

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
            **{name: value for name, value in prompt.sampling.items() if name not in dialect.omitted},
        }
        if system := _system(prompt):
            body["system"] = system
        if prompt.schema is None:
            return body
        match dialect.json_modes[0]:
            case "json_schema":
                body["output_config"] = {
                    "format": {"type": "json_schema", "schema": _supported(prompt.schema)}
                }
            case "tool":
                description = "Hand in the plan."
                body["tools"] = [{"name": _TOOL, "description": description, "input_schema": prompt.schema}]
                body["tool_choice"] = {"type": "tool", "name": _TOOL}
        return body

    def _streaming(self) -> Mapping[str, object]:
        return {"stream": True}

    def _parse(self, body: Mapping[str, Any], request: ModelRequest) -> Content | None:
        usage = body.get("usage")
        blocks = body.get("content")
        if isinstance(blocks, str):
            blocks = [{"type": "text", "text": blocks}]
        if not isinstance(blocks, list):
            return None
        may_call_tool = request.prompt.schema is not None
        reason = reason_of(body.get("stop_reason"))
        finish = finish_of(reason, may_call_tool=may_call_tool)
        refusal = None
        if finish is Finish.FILTERED:
            details = body.get("stop_details")
            refusal = str((details if isinstance(details, dict) else {}).get("explanation") or reason)
        return Content(
            "".join(map(_text, blocks)),
            reason,
            finish,
            refusal,
            response_id=response_id(body),
            used=(sum(count(usage, name) for name in _INPUT_TOKENS), count(usage, "output_tokens")),
        )

    def _accumulator(self) -> Accumulator:
        return _Accumulator()


class _Accumulator(Accumulator):
    """A message that is being streamed."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] = []
        self._tool_input = ""
        """What a tool is called with by the block's beginning: it counts if nothing follows."""
        self._is_other_tool = False
        """Whether the block calls a tool that is none of ours."""
        self._details: object = None

    def add(self, event: Mapping[str, Any]) -> str:
        """Take in an event of any type; those that say nothing to us are passed over."""
        text = ""
        match event:
            case {"type": "message_start", "message": {**message}}:
                self._note_usage(message)
                self.note_id(message.get("id"))
                blocks = message.get("content")
                text = "".join(map(_text, blocks)) if isinstance(blocks, list) else ""
                self._write(text)
                self.note_reason(message.get("stop_reason"))
            case {"type": "content_block_start", "content_block": {**block}}:
                text = self._write(self._begin(block))
            case {"type": "content_block_delta", "delta": {"text": str(text)}}:
                self._write(text)
            case {"type": "content_block_delta", "delta": {"partial_json": str(text)}}:
                text = "" if self._is_other_tool else self._write(text)
                self._tool_input = "" if text else self._tool_input
            case {"type": "content_block_stop"}:
                text = self._write(self._tool_input)
                self._tool_input = ""
            case {"type": "message_delta", "delta": {**ending}}:
                # Totals, not what was added; what it does not count again stays as it was.
                self._note_usage(event)
                self._details = ending.get("stop_details") or self._details
                self.note_reason(ending.get("stop_reason"))
            case {"type": "message_stop"}:
                self._note_usage(event)
                self.has_ended = True
        return text

    def _begin(self, block: Mapping[Any, Any]) -> str:
        """Begin a block, with the text that an endpoint may send before the first delta."""
        is_tool = block.get("type") in ("tool_use", "server_tool_use")
        self._is_other_tool = is_tool and block.get("name") != _TOOL
        self._tool_input = _text(block) if is_tool and block.get("input") else ""
        return "" if is_tool else _text(block)

    def _write(self, text: str) -> str:
        self._texts.append(text)
        self.note_text(text)
        return text

    def _note_usage(self, holder: Mapping[Any, Any]) -> None:
        match holder:
            case {"usage": {**usage}}:
                self.note_usage(usage)

    def body(self) -> Mapping[str, Any]:
        """Return the message as far as it has come."""
        return {
            "id": self.response_id,
            "content": [{"type": "text", "text": "".join(self._texts)}],
            "usage": self.usage,
            "stop_reason": self.reason,
            "stop_details": self._details,
        }


def _system(prompt: Prompt) -> str:
    return "\n\n".join(message.content for message in prompt.messages if message.role == "system")


def _text(block: Any) -> str:
    match block:
        case {"text": str(text)} if block.get("type", "text") == "text":
            return text
        case {"type": "tool_use", "name": name, "input": arguments} if name == _TOOL:
            return json.dumps(arguments, ensure_ascii=False)
        case _:
            return ""


def _supported(schema: Any) -> Any:
    """Return a schema without what structured outputs refuse: lengths and patterns."""
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
