"""Models behind an OpenAI-compatible endpoint: `POST {base}/chat/completions`.

Reading is lenient where endpoints are known to differ: content may be text, parts or parsed JSON, and
thoughts may stand in front of it or in a field of their own.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from orchestrator.core.prompts import FULL, Profile
from orchestrator.models.base import ModelRequest
from orchestrator.models.endpoint import HttpProvider, Said, count
from orchestrator.models.failures import REFUSALS
from orchestrator.models.http import IDLE_TIMEOUT_S
from orchestrator.models.structured import Dialect

_THOUGHTS: Final = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
_TEXT_FIELDS: Final = ("content", "reasoning_content", "reasoning", "refusal")


class ChatCompletions(HttpProvider):
    """A Provider for one endpoint."""

    path: ClassVar[str] = "chat/completions"

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        api_key: str = "",
        key_variable: str = "",
        profile: Profile = FULL,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """See HttpProvider. An empty key sends none, as local servers want it."""
        super().__init__(
            name,
            base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            api_key=api_key,
            key_variable=key_variable,
            profile=profile,
            idle_timeout_s=idle_timeout_s,
        )

    def _body(self, request: ModelRequest, dialect: Dialect) -> dict[str, object]:
        prompt = request.prompt
        body: dict[str, object] = {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
            dialect.token_limit: request.token_limit,
            **{name: value for name, value in prompt.sampling.items() if name not in dialect.left_out},
        }
        match dialect.rungs[0]:
            case "json_schema" if prompt.schema is not None:
                named = {"name": "plan", "schema": prompt.schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": named}
            case "json_object" if prompt.schema is not None:
                body["response_format"] = {"type": "json_object"}
        return body

    def _streaming(self) -> Mapping[str, object]:
        return {"stream": True, "stream_options": {"include_usage": True}}

    def _said(self, body: Mapping[str, Any], request: ModelRequest) -> Said | None:
        usage = body.get("usage")
        used = (count(usage, "prompt_tokens"), count(usage, "completion_tokens"))
        match body:
            case {"choices": [{"message": {**message}} as choice, *_]}:
                pass
            case _:
                return None
        finish = choice.get("finish_reason")
        text = _text(message.get("content"))
        if not text.strip() and request.prompt.schema is not None:
            # Some reasoning models leave the JSON where their thoughts belong.
            text = _text(message.get("reasoning_content") or message.get("reasoning"))
        text = _THOUGHTS.sub("", text, count=1) if text.lstrip().startswith("<think>") else text
        refusal = message.get("refusal") or ("" if str(finish) in REFUSALS else None)
        return Said(text, finish == "length", None if refusal is None else str(refusal), used)

    def _error(self, body: Mapping[str, Any]) -> object:
        match body:
            # OpenRouter tells of a model that broke off like this.
            case {"choices": [{"error": error}, *_]} if error:
                return error
            case _:
                return super()._error(body)

    def _draft(self) -> "_Draft":
        return _Draft()


class _Draft:
    """A completion that is being streamed."""

    def __init__(self) -> None:
        self._written: dict[str, list[str]] = {name: [] for name in _TEXT_FIELDS}
        self._finish: object = None
        self._usage: object = None

    @property
    def is_whole(self) -> bool:
        """Whether a finish_reason has come."""
        return self._finish is not None

    def add(self, event: Mapping[str, Any]) -> str:
        """Take in a chunk."""
        match event:
            # The usage comes last, in a chunk that has no choice.
            case {"usage": {**usage}} | {"x_groq": {"usage": {**usage}}}:
                self._usage = usage
        match event:
            case {"choices": [{**choice}, *_]}:
                self._finish = choice.get("finish_reason") or self._finish
            case _:
                return ""
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return ""
        added = {name: _text(delta.get(name)) for name in _TEXT_FIELDS}
        for name, text in added.items():
            if text:
                self._written[name].append(text)
        return added["content"]

    def body(self) -> Mapping[str, Any]:
        """The completion as far as it has come."""
        message = {name: "".join(texts) for name, texts in self._written.items()}
        return {"choices": [{"message": message, "finish_reason": self._finish}], "usage": self._usage}


def _text(content: Any) -> str:
    """The text of a message's content: a string, a list of parts, or JSON that the endpoint parsed for us."""
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
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""
