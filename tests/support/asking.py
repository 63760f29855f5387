"""Asking a provider something, over HTTP, streamed or not."""

from collections.abc import Callable
from typing import Any

import pytest
from support.endpoint import Answer, Call, Endpoint, message
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
    *,
    streamed: bool = False,
    **settings: Any,
) -> ModelReply:
    """Ask once; the pieces of a streamed answer must add up to the reply's text."""
    async with Endpoint(script) as endpoint:
        provider = make(endpoint, **settings)
        try:
            return await ask(provider, request, streamed=streamed)
        finally:
            await provider.aclose()


async def ask(provider: Any, request: ModelRequest | None = None, *, streamed: bool = False) -> ModelReply:
    told: list[str] = []
    answer: ModelReply = await provider.complete(request or asking(), told.append if streamed else None)
    assert "".join(told) == (answer.text if streamed else "")
    return answer


async def failure(
    make: Callable[..., HttpProvider],
    script: Callable[[Call], Answer],
    request: ModelRequest | None = None,
    *,
    streamed: bool = False,
    **settings: Any,
) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await reply(make, script, request, streamed=streamed, **settings)
    return caught.value
