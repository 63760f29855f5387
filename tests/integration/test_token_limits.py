"""Limits of tokens that an endpoint refuses, over real HTTP, in both APIs."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Answer, Call, Endpoint, failing
from support.provider_calls import answer_body, ask, chat, failure, messages, model_request
from support.refusals import CAPS, NO_ROOM, RATES, TOO_LONG, UNCLEAR, WINDOWS, WITHOUT_NUMBERS

from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest
from orchestrator.models.http.endpoint import HttpProvider
from orchestrator.models.http.token_limits import LEAST

Make = Callable[..., HttpProvider]
Refuse = Callable[[str], Answer]

each_api = pytest.mark.parametrize("make", [chat, messages])


def in_a_200(message: str) -> Answer:
    return web.json_response({"error": message})


def in_the_first_event(message: str) -> Answer:
    async def refuse(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, [{"type": "error", "error": {"message": message}}])

    return refuse


def nested(message: str) -> Answer:
    raw = json.dumps({"error": {"message": message}})
    error = {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}
    return web.json_response([{"error": error}], status=400)


def with_status(status: int) -> Refuse:
    return lambda message: failing(status, message)


rejected = with_status(400)
each_form = pytest.mark.parametrize(
    "refuse",
    [*map(with_status, (400, 413, 422, 500)), in_a_200, in_the_first_event, nested],
    ids=["400", "413", "422", "500", "200", "event", "nested"],
)


def request_with_limit(limit: int = 8192, text: str = "Hi", model: str = "m") -> ModelRequest:
    request = model_request(model=model)
    system, user = request.prompt.messages
    prompt = request.prompt._replace(messages=(system, user._replace(content=text)))
    return request._replace(prompt=prompt, max_output_tokens=limit)


def rejecting_above(most: int, message: str, refuse: Refuse = rejected) -> Callable[[Call], Answer]:
    """An endpoint that refuses every limit above one, with the same words."""
    return lambda call: refuse(message) if limit_in(call) > most else None


def limit_in(call: Call) -> int:
    limit = call.body.get("max_tokens") or call.body["max_completion_tokens"]
    assert isinstance(limit, int)
    return limit


async def limits(script: Callable[[Call], Answer], *requests: ModelRequest, make: Make = chat) -> list[int]:
    """With which limits the endpoint is asked for these, one after the other."""
    async with Endpoint(script) as endpoint:
        provider = make(endpoint)
        for request in requests:
            assert (await ask(provider, request)).text
        await provider.aclose()
    return [limit_in(call) for call in endpoint.calls]


@each_api
@each_form
async def test_a_rejected_limit_is_lowered_to_the_named_one(make: Make, refuse: Refuse) -> None:
    script = rejecting_above(4096, "max_tokens is too large: 8192. This model supports at most 4096", refuse)
    assert await limits(script, request_with_limit(), make=make) == [8192, 4096]


@pytest.mark.parametrize(("message", "cap"), CAPS)
async def test_a_cap_is_remembered_for_the_model(message: str, cap: int) -> None:
    requests = [
        request_with_limit(),
        request_with_limit(),
        request_with_limit(300),
        request_with_limit(model="another"),
    ]
    assert await limits(rejecting_above(cap, message), *requests) == [8192, cap, cap, 300, 8192, cap]


async def test_a_cap_applies_with_and_without_json() -> None:
    plan = model_request(schema=True)._replace(max_output_tokens=8192)
    script = rejecting_above(
        4096, "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens"
    )
    assert await limits(script, plan, request_with_limit()) == [8192, 4096, 4096]


@pytest.mark.parametrize(("message", "window", "prompt"), WINDOWS)
async def test_a_limit_is_lowered_where_it_and_the_prompt_exceed_the_window(
    message: str, window: int, prompt: int
) -> None:
    asked = await limits(
        rejecting_above(window - prompt, message), request_with_limit(), request_with_limit()
    )
    assert asked == [8192, window - prompt, window - prompt]


@pytest.mark.parametrize("status", [413, 429])
async def test_an_allowance_per_minute_lowers_the_limit_to_what_the_prompt_leaves(status: int) -> None:
    message = (
        "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 8500, please "
        "reduce your message size and try again."
    )
    assert await limits(rejecting_above(5692, message, with_status(status)), request_with_limit()) == [
        8192,
        5692,
    ]


def small_context(context: int) -> Callable[[Call], Answer]:
    """An endpoint that counts as vLLM and Workers AI do, a token for every four characters."""

    def script(call: Call) -> Answer:
        prompt, limit = len(call.prompt_text) // 4, limit_in(call)
        if prompt + limit <= context:
            return None
        return failing(
            400,
            f"'max_tokens' or 'max_completion_tokens' is too large: {limit}. This model's maximum context "
            f"length is {context} tokens and your request has {prompt} input tokens ({limit} > {context} - "
            f"{prompt}).",
        )

    return script


@each_api
async def test_the_room_left_by_a_long_prompt_does_not_limit_a_short_one(make: Make) -> None:
    asked = await limits(
        small_context(8192), request_with_limit(text="x" * 24_000), request_with_limit(), make=make
    )
    first, room, *short = asked
    assert (first, room) == (8192, 8192 - 6002)
    assert short[-1] > 7900


@each_api
async def test_a_known_context_is_respected_without_further_rejections(make: Make) -> None:
    texts = ["x" * 24_000, "x" * 24_000, "x" * 12_000, "x" * 4000]
    asked = await limits(small_context(8192), *(request_with_limit(text=text) for text in texts), make=make)
    assert asked[:3] == [8192, 2190, 2190]
    assert len(asked) == 5


async def test_a_prompt_is_too_long_only_when_no_useful_room_is_left() -> None:
    calls: list[int] = []

    def script(call: Call) -> Answer:
        calls.append(limit_in(call))
        return small_context(8192)(call)

    error = await failure(chat, script, request_with_limit(text="x" * 4 * (8192 - LEAST)))
    assert (error.reason, error.retryable, calls) == ("INPUT_TOO_LONG", True, [8192])


@pytest.mark.parametrize("message", WITHOUT_NUMBERS)
async def test_a_rejection_without_numbers_halves_the_limit_as_often_as_needed(message: str) -> None:
    assert (await limits(rejecting_above(2500, message), request_with_limit()))[:3] == [8192, 4096, 2048]


@pytest.mark.parametrize("message", NO_ROOM)
async def test_a_prompt_that_leaves_no_room_is_too_long_at_once(message: str) -> None:
    async with Endpoint(rejecting_above(0, message)) as endpoint:
        provider = chat(endpoint)
        with pytest.raises(ModelError) as caught:
            await ask(provider, request_with_limit())
        await provider.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("INPUT_TOO_LONG", True)
    assert len(endpoint.calls) == 1


@pytest.mark.parametrize("message", TOO_LONG)
async def test_a_prompt_that_is_too_long_is_recognised_in_every_dialect(message: str) -> None:
    error = await failure(chat, rejecting_above(0, message), request_with_limit())
    assert (error.reason, error.retryable) == ("INPUT_TOO_LONG", True)


@each_api
@each_form
@pytest.mark.parametrize("message", [TOO_LONG[5], NO_ROOM[1]])
async def test_a_prompt_that_is_too_long_is_recognised_in_every_place_of_the_answer(
    make: Make, refuse: Refuse, message: str
) -> None:
    error = await failure(make, rejecting_above(0, message, refuse), request_with_limit())
    assert (error.reason, error.retryable) == ("INPUT_TOO_LONG", True)


async def test_a_413_without_words_is_a_prompt_that_is_too_long() -> None:
    page = "<html><head><title>413 Request Entity Too Large</title></head></html>"
    error = await failure(chat, lambda _: web.Response(text=page, status=413, content_type="text/html"))
    assert error.reason == "INPUT_TOO_LONG"


@pytest.mark.parametrize("status", [400, 413, 429])
@pytest.mark.parametrize("message", RATES)
async def test_tokens_per_minute_are_a_rate_limit(status: int, message: str) -> None:
    error = await failure(chat, rejecting_above(0, message, with_status(status)), request_with_limit())
    assert (error.reason, error.retryable) == ("RATE_LIMITED", True)


async def test_an_endpoint_that_rejects_every_limit_is_given_up() -> None:
    def one_less(call: Call) -> Answer:
        limit = limit_in(call)
        return failing(
            400, f"max_tokens is too large: {limit}. This model supports at most {limit - 1} tokens"
        )

    async with Endpoint(one_less) as endpoint:
        provider = chat(endpoint)
        with pytest.raises(ModelError) as caught:
            await ask(provider, request_with_limit())
        await provider.aclose()
    assert caught.value.reason == "REQUEST_REJECTED"
    assert len(endpoint.calls) < 20


async def test_a_limit_that_cut_an_answer_is_forgotten_as_it_may_have_been_misparsed() -> None:
    def script(_: Call) -> Answer:
        match len(endpoint.calls):
            case 1:
                return failing(400, "max_tokens is too large here, see page 600")
            case 3:
                return answer_body(chat, "half an ans", is_cut=True)
            case _:
                return None

    async with Endpoint(script) as endpoint:
        provider = chat(endpoint)
        await ask(provider, request_with_limit())
        with pytest.raises(ModelError, match="cut off at 600 tokens"):
            await ask(provider, request_with_limit())
        await ask(provider, request_with_limit())
        await provider.aclose()
    assert [limit_in(call) for call in endpoint.calls] == [8192, 600, 600, 8192]


@each_api
@pytest.mark.parametrize("refuse", [with_status(400), in_a_200], ids=["400", "200"])
async def test_a_limit_used_up_by_thinking_cuts_the_answer_and_is_not_lowered(
    make: Make, refuse: Refuse
) -> None:
    message = (
        "Could not finish the message because max_tokens or model output limit was reached. Please try again "
        "with higher max_tokens."
    )
    async with Endpoint(rejecting_above(0, message, refuse)) as endpoint:
        provider = make(endpoint)
        with pytest.raises(ModelError, match="thinking") as caught:
            await ask(provider, request_with_limit())
        await provider.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("OUTPUT_TRUNCATED", True)
    assert len(endpoint.calls) == 1


async def test_a_limit_is_lowered_under_its_newer_name_too() -> None:
    def script(call: Call) -> Answer:
        if "max_tokens" in call.body:
            return failing(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return rejecting_above(
            4096, "max_completion_tokens is too large: 8192. This model supports at most 4096"
        )(call)

    assert await limits(script, request_with_limit(), request_with_limit()) == [8192, 8192, 4096, 4096]


async def test_an_endpoint_that_only_mentions_the_newer_name_keeps_the_older_one() -> None:
    async with Endpoint(small_context(8192)) as endpoint:
        provider = chat(endpoint)
        await ask(provider, request_with_limit())
        await provider.aclose()
    assert all("max_tokens" in call.body for call in endpoint.calls)


async def test_an_error_within_the_text_is_a_failure_and_lowers_no_limit() -> None:
    async def break_off(call: Call) -> web.StreamResponse:
        body: dict[str, Any] = answer_body(chat, "half an ans")
        beginning = streams.completion_events(body, {})[:-2]
        error = {"error": {"message": "max_tokens is too large: at most 100", "code": 400}}
        return await streams.send(call.request, [*beginning, error])

    async with Endpoint(lambda _: break_off) as endpoint:
        provider = chat(endpoint)
        with pytest.raises(ModelError):
            await ask(provider, request_with_limit())
        await provider.aclose()
    assert len(endpoint.calls) == 1


@each_api
@pytest.mark.parametrize("message", UNCLEAR)
async def test_a_rejection_that_names_the_limit_and_nothing_else_lowers_it(make: Make, message: str) -> None:
    def script(call: Call) -> Answer:
        return failing(400, message) if call.body["max_tokens"] > 4096 else "fine"

    async with Endpoint(script) as endpoint:
        provider = make(endpoint)
        assert (await ask(provider, request_with_limit())).text == "fine"
        await ask(provider, request_with_limit())
        await provider.aclose()
    assert [call.body["max_tokens"] for call in endpoint.calls] == [8192, 4096, 4096]


async def test_a_rejection_of_a_limit_as_too_small_does_not_lower_it() -> None:
    async with Endpoint(lambda _: failing(400, "max_tokens must be at least 10000")) as endpoint:
        provider = chat(endpoint)
        with pytest.raises(ModelError):
            await ask(provider, request_with_limit())
        await provider.aclose()
    assert len(endpoint.calls) == 1


async def test_a_limit_that_an_endpoint_names_is_kept_for_the_next_part_of_an_answer() -> None:
    def script(call: Call) -> Answer:
        if limit_in(call) > 4096:
            return failing(400, "max_tokens is too large: 8192. This model supports at most 4096 tokens.")
        return answer_body(chat, "half an ans", is_cut=True)

    async with Endpoint(script) as endpoint:
        provider = chat(endpoint)
        for _ in range(3):
            assert (await provider.complete(request_with_limit())).text == "half an ans"
        await provider.aclose()
    assert [limit_in(call) for call in endpoint.calls] == [8192, 4096, 4096, 4096]
