"""Models behind an OpenAI-compatible endpoint: `POST {base}/chat/completions`.

Reading is lenient where endpoints are known to differ: content may be text, parts or parsed JSON, and
thoughts may stand in front of it or in a field of their own.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from orchestrator.models.base import ModelRequest
from orchestrator.models.http.address import Address
from orchestrator.models.http.endpoint import Content, HttpProvider, count, response_id
from orchestrator.models.http.finish import finish_of, reason_of
from orchestrator.models.http.streaming import Accumulator
from orchestrator.models.http.structured import Dialect

_THOUGHTS: Final = ("reasoning_content", "reasoning")
_TEXT_FIELDS: Final = ("content", "refusal", *_THOUGHTS)
_TOOL_CALLS: Final = ("tool_calls", "function_call")


class ChatCompletions(HttpProvider):
    """A Provider for one endpoint."""

    path: ClassVar[str] = "chat/completions"

    endings: ClassVar[Sequence[str]] = ("chat/completions", "completions", "responses")

    def _headers(self, api_key: str, address: Address) -> Mapping[str, str]:
        if not api_key:
            return {}  # as local servers want it
        bearer = {"Authorization": f"Bearer {api_key}"}
        # Azure takes a key in this header, and in the other one only tokens of Entra's, which are JWTs.
        is_key_of_azure = address.is_azure and not api_key.startswith("eyJ")
        return {**bearer, "api-key": api_key} if is_key_of_azure else bearer

    def _body(self, request: ModelRequest, dialect: Dialect) -> dict[str, object]:
        prompt = request.prompt
        body: dict[str, object] = {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
            dialect.token_limit: request.token_limit,
            **{name: value for name, value in prompt.sampling.items() if name not in dialect.omitted},
        }
        match dialect.json_modes[0]:
            case "json_schema" if prompt.schema is not None:
                named = {"name": "plan", "schema": prompt.schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": named}
            case "json_object" if prompt.schema is not None:
                body["response_format"] = {"type": "json_object"}
        return body

    def _streaming(self) -> Mapping[str, object]:
        return {"stream": True, "stream_options": {"include_usage": True}}

    def _parse(self, body: Mapping[str, Any], request: ModelRequest) -> Content | None:
        usage = body.get("usage")
        match body:
            case {"choices": [{"message": {**message}} as choice, *_]}:
                pass
            case _:
                return None
        text = _text(message.get("content"))
        is_json = request.prompt.schema is not None
        if is_json and not text.strip():
            text = _json_in(_text(next(filter(None, map(message.get, _THOUGHTS)), None)))
        reason = reason_of(choice.get("finish_reason"))
        # We offer no tool, but some gateways have a plan handed in as one call.
        may_call_tool = is_json or not any(map(message.get, _TOOL_CALLS))
        return Content(
            text,
            reason,
            finish_of(reason, may_call_tool=may_call_tool),
            refusal=str(message["refusal"]) if message.get("refusal") else None,
            response_id=response_id(body),
            used=_used(usage),
        )

    def _error(self, body: Mapping[str, Any]) -> object:
        match body:
            # OpenRouter reports a model that broke off like this.
            case {"choices": [{"error": error}, *_]} if error:
                return error
            case _:
                return super()._error(body)

    def _accumulator(self) -> Accumulator:
        return _Accumulator()


class _Accumulator(Accumulator):
    """A completion that is being streamed."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[str, list[str]] = {name: [] for name in _TEXT_FIELDS}
        self._calls: dict[str, object] = {}

    def add(self, event: Mapping[str, Any]) -> str:
        """Take in a chunk."""
        choice = _first_choice(event)
        self.note_id(event.get("id"))
        for holder in (event, event.get("x_groq"), choice, choice.get("delta")):
            match holder:
                case {"usage": {**usage}}:
                    self.note_usage(usage)
                    # It comes last, in a chunk that has no choice, or in each that has one.
                    self.is_complete = bool(self.reason) and not choice
        text = self._write(self._delta(choice))
        self.note_reason(choice.get("finish_reason") or _finish_in(choice.get("delta")))
        return text

    def _delta(self, choice: Mapping[Any, Any]) -> Mapping[str, Any]:
        """Return what a chunk adds; some gateways send all as one message."""
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, dict) and (delta or not isinstance(message, dict)):
            return delta
        return message if isinstance(message, dict) and not any(self._written.values()) else {}

    def _write(self, delta: Mapping[str, Any]) -> str:
        added = {name: _text(delta.get(name)) for name in _TEXT_FIELDS}
        for name, text in added.items():
            if text:
                self._written[name].append(text)
                self.note_text(text, is_thought=name in _THOUGHTS)
        self._calls |= {name: delta[name] for name in _TOOL_CALLS if delta.get(name)}
        return added["content"]

    def body(self) -> Mapping[str, Any]:
        """Return the completion as far as it has come."""
        message = {name: "".join(texts) for name, texts in self._written.items()} | self._calls
        return {
            "id": self.response_id,
            "choices": [{"message": message, "finish_reason": self.reason}],
            "usage": self.usage,
        }


def _first_choice(event: Mapping[str, Any]) -> Mapping[Any, Any]:
    match event:
        case {"choices": [{**choice}, *_]}:
            return choice
        case _:
            return {}


def _finish_in(delta: object) -> object:
    return delta.get("finish_reason") if isinstance(delta, dict) else None


def _used(usage: object) -> tuple[int, int]:
    sent = count(usage, "prompt_tokens") or count(usage, "input_tokens")
    received = count(usage, "completion_tokens") or count(usage, "output_tokens")
    return sent, received or max(count(usage, "total_tokens") - sent, 0)


def _json_in(thoughts: str) -> str:
    """Thoughts that are JSON and nothing else, as some models leave it where they belong; otherwise empty."""
    bare = thoughts.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    return thoughts if bare.startswith("{") and bare.endswith("}") else ""


def _text(content: Any) -> str:
    """Return the text of a message's content: a string, a list of parts, or JSON that was parsed already."""
    match content:
        case str():
            return content
        case None:
            return ""
        case list():
            return "".join(part if isinstance(part, str) else _part(part) for part in content)
        case _:
            return json.dumps(content, ensure_ascii=False)


def _part(part: object) -> str:
    if not isinstance(part, dict) or re.search("think|thought|reason", str(part.get("type"))):
        return ""
    text = part.get("text")
    return text if isinstance(text, str) else ""
