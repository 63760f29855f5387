"""Calls of a provider over HTTP, answered in one piece or streamed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from support.endpoint import Answer, Call, Endpoint, failing, message
from support.endpoint import completion as chat_completion

from orchestrator.core.prompts import Message, Prompt
from orchestrator.core.replies import ModelReply, find_failure
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest
from orchestrator.models.http.anthropic import Anthropic
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.models.http.endpoint import HttpProvider

KEY = "sk-very-secret"
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
HI = (Message("system", "You work."), Message("user", "Hi"))

AnswerMode = Literal["whole", "streamed"]
"""Whether an answer is in one piece, as of an endpoint that will not stream, or streamed."""

both_modes = pytest.mark.parametrize("mode", ["whole", "streamed"])


def model_request(
    *, schema: bool = False, model: str = "m", timeout_s: float = 20, **options: Any
) -> ModelRequest:
    role = "planning" if schema else "work"
    prompt = Prompt(role, HI, schema=SCHEMA if schema else None, **options)
    return ModelRequest(model, prompt, max_output_tokens=500, timeout_s=timeout_s)


def chat(endpoint: Endpoint, **settings: Any) -> HttpProvider:
    return ChatCompletions("openai", endpoint.url, api_key=KEY, key_variable="OPENAI_API_KEY", **settings)


def messages(endpoint: Endpoint, **settings: Any) -> HttpProvider:
    return Anthropic("anthropic", endpoint.url, api_key=KEY, key_variable="ANTHROPIC_API_KEY", **settings)


def answer_body(make: Callable[..., HttpProvider], text: str, *, is_cut: bool = False) -> dict[str, Any]:
    """Build the response body in the API of the provider."""
    if make is messages:
        return message(text, stop_reason="max_tokens" if is_cut else "end_turn")
    return chat_completion(text, "length" if is_cut else "stop")


async def reply(
    make: Callable[..., HttpProvider],
    script: Callable[[Call], Answer],
    request: ModelRequest | None = None,
    mode: AnswerMode = "streamed",
    **settings: Any,
) -> ModelReply:
    async with Endpoint(without_streaming(script) if mode == "whole" else script) as endpoint:
        provider = make(endpoint, **settings)
        try:
            return await ask(provider, request)
        finally:
            await provider.aclose()


def without_streaming(script: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
    return lambda call: failing(400, "'stream' is not supported") if "stream" in call.body else script(call)


async def ask(provider: Any, request: ModelRequest | None = None) -> ModelReply:
    """Call the provider; assert that the emitted pieces add up to the text of the reply.

    Raise ModelError as a call of the service would fail: also where the core finds that it is no answer.
    """
    recorder, request = TextRecorder(), request or model_request()
    answer: ModelReply = await provider.complete(request, recorder)
    assert recorder.text == answer.text
    if failure := find_failure(answer, request.prompt, request.model):
        raise failure
    return answer


@dataclass
class TextRecorder:
    """The text that a provider has emitted; pieces before a restart are discarded."""

    pieces: list[str] = field(default_factory=list)
    restarts: int = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def __call__(self, piece: str, *, is_restart: bool = False) -> None:
        if is_restart:
            self.pieces.clear()
            self.restarts += 1
        self.pieces.append(piece)


async def failure(
    make: Callable[..., HttpProvider],
    script: Callable[[Call], Answer],
    request: ModelRequest | None = None,
    mode: AnswerMode = "streamed",
    **settings: Any,
) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await reply(make, script, request, mode, **settings)
    return caught.value
