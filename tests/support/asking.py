"""Asking a provider something, over HTTP: in one piece, or streamed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from support.endpoint import Answer, Call, Endpoint, failing, message
from support.endpoint import completion as chat_completion

from orchestrator.core.prompts import Message, Prompt
from orchestrator.errors import ModelError
from orchestrator.models.anthropic import Anthropic
from orchestrator.models.base import ModelReply, ModelRequest
from orchestrator.models.chat_completions import ChatCompletions
from orchestrator.models.endpoint import HttpProvider

KEY = "sk-very-secret"
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
HI = (Message("system", "You work."), Message("user", "Hi"))

How = Literal["whole", "streamed"]
"""Whether an answer is in one piece, as of an endpoint that will not stream, or streamed."""

each_way = pytest.mark.parametrize("how", ["whole", "streamed"])


def asking(*, schema: bool = False, model: str = "m", timeout_s: float = 20, **prompt: Any) -> ModelRequest:
    role = "planning" if schema else "work"
    asked = Prompt(role, HI, schema=SCHEMA if schema else None, **prompt)
    return ModelRequest(model, asked, max_output_tokens=500, timeout_s=timeout_s)


def chat(endpoint: Endpoint, **settings: Any) -> HttpProvider:
    return ChatCompletions("openai", endpoint.url, api_key=KEY, key_variable="OPENAI_API_KEY", **settings)


def messages(endpoint: Endpoint, **settings: Any) -> HttpProvider:
    return Anthropic("anthropic", endpoint.url, api_key=KEY, key_variable="ANTHROPIC_API_KEY", **settings)


def said(make: Callable[..., HttpProvider], text: str, *, is_cut: bool = False) -> dict[str, Any]:
    """The body of an answer in the API that a provider speaks."""
    if make is messages:
        return message(text, stop_reason="max_tokens" if is_cut else "end_turn")
    return chat_completion(text, "length" if is_cut else "stop")


async def reply(
    make: Callable[..., HttpProvider],
    script: Callable[[Call], Answer],
    request: ModelRequest | None = None,
    how: How = "streamed",
    **settings: Any,
) -> ModelReply:
    async with Endpoint(without_streaming(script) if how == "whole" else script) as endpoint:
        provider = make(endpoint, **settings)
        try:
            return await ask(provider, request)
        finally:
            await provider.aclose()


def without_streaming(script: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
    return lambda call: failing(400, "'stream' is not supported") if "stream" in call.body else script(call)


async def ask(provider: Any, request: ModelRequest | None = None) -> ModelReply:
    """The pieces that are told must add up to the reply's text, however it comes."""
    told = Told()
    answer: ModelReply = await provider.complete(request or asking(), told)
    assert told.text == answer.text
    return answer


@dataclass
class Told:
    """What a caller has been told, by what it is to make of it."""

    pieces: list[str] = field(default_factory=list)
    restarts: int = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def __call__(self, piece: str, *, is_anew: bool = False) -> None:
        if is_anew:
            self.pieces.clear()
            self.restarts += 1
        self.pieces.append(piece)


async def failure(
    make: Callable[..., HttpProvider],
    script: Callable[[Call], Answer],
    request: ModelRequest | None = None,
    how: How = "streamed",
    **settings: Any,
) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await reply(make, script, request, how, **settings)
    return caught.value
