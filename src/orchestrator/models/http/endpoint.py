"""What all providers behind an HTTP endpoint have in common: how a call is made, and when it has failed.

An API's own module says how it is asked, and how its answers and its streams are read.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, Final, TypeVar

from orchestrator.core.prompts import FULL, Profile
from orchestrator.core.replies import Finish, ModelReply
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest, TextCallback, timed_out
from orchestrator.models.http import error_body, json_body, token_limits
from orchestrator.models.http.address import Address
from orchestrator.models.http.client import IDLE_TIMEOUT_S, EndpointClient, HttpResponse, StreamingResponse
from orchestrator.models.http.delivery import Delivery, DeliveryChooser
from orchestrator.models.http.failures import INVALID_ANSWER, MAX_ERROR_BYTES, Failures
from orchestrator.models.http.json_body import SMALL_BYTES, TooManyValuesError
from orchestrator.models.http.streaming import BYTE_ORDER_MARK, Accumulator, Event, SseDecoder
from orchestrator.models.http.structured import REJECTED, Dialect
from orchestrator.models.http.thoughts import LARGEST_PIECE, AnswerText
from orchestrator.models.http.token_limits import TokenLimits
from orchestrator.offload import offload

MOST_WHITE_SPACE: Final = 1000
"""So many characters of white space in a row come from a model that is lost in a grammar."""

_MOST_CHANGES: Final = 16
"""So many refusals are learnt from in one call: an endpoint that goes on refusing means something else."""
_UNFIXABLE_STATUSES: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
"""Statuses of refusals that no other request would mend."""
_GATEWAY_TIMEOUTS: Final = frozenset({408, 502, 504, *range(520, 528), 598, 599})
"""Statuses with which gateways end a call that takes them too long."""
_EVENTS_AT_ONCE: Final = 64
"""So many events of a stream are read before others have their turn: some 2 ms."""
_WRITTEN_PER_READ: Final = 64
"""So many characters of JSON are written in the time that one of the worst is read."""
_LARGE_CHUNK_BYTES: Final = 4096
_MOST_PRELUDES: Final = 3  # events of a stream before an answer: its start, a ping, a role
_DIALECT_S: Final = 3600.0
"""How long a dialect is remembered: what an endpoint refuses today it may know tomorrow."""

_KEEPALIVE_EVENTS: Final = frozenset({b"ping", b"heartbeat", b"keepalive", b"keep-alive"})
"""Types of events that say nothing."""
_SAYING_NOTHING: Final = _KEEPALIVE_EVENTS | {b"null"}
_LONGEST_KEEPALIVE: Final = 64
_ANSWERS: Final = frozenset({"choices", "content", "type"})
"""Of these an answer or an event of one has at least one."""
_ERROR_FIELDS: Final = ("message", "detail", "msg", "error_message", "error_msg")
"""In these frameworks and gateways say what went wrong; an answer has none of them."""
_MOST_DIGITS: Final = 15
_LONGEST_ID: Final = 200
"""Characters of an answer's id."""
_BLANK: Final = BYTE_ORDER_MARK + b" \t\r\n"

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Content:
    """What an answer holds, in whichever API it came."""

    text: str
    """All that the model has written, thoughts in front of it included."""
    reason: str = ""
    """Why it ended, in the endpoint's words; empty: it was not said."""
    finish: Finish = Finish.NORMAL
    """What that means."""
    refusal: str | None = None
    """Why the model will not answer, which may be empty; None: it does answer."""
    response_id: str = ""
    """What the endpoint calls the answer; empty: it does not say."""
    used: tuple[int, int] = (0, 0)
    """Tokens of input and of output, by the endpoint's count."""


@dataclass(frozen=True, slots=True)
class _RequestTerms:
    """How a call is made: what the endpoint has not refused so far."""

    dialect: Dialect
    learnt_limits: TokenLimits
    """What is known of the model's limits."""
    limit: int
    """How many tokens this call asks for."""

    def adapt(self, request: ModelRequest) -> ModelRequest:
        """Return the request on these terms."""
        prompt = self.dialect.adapt(request.prompt)
        return request._replace(prompt=prompt, max_output_tokens=self.limit)

    def after_rejection(
        self, answer: HttpResponse, sent: Mapping[str, object], request: ModelRequest
    ) -> "_RequestTerms | None":
        """Return the terms to try next after a refusal; None: it is about something else."""
        words = error_body.words(answer.body)
        if answer.status in _UNFIXABLE_STATUSES or INVALID_ANSWER.search(words):
            return None
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS and not token_limits.PER_TIME.search(words):
            return None
        if refusal := token_limits.refusal(words, self.limit, request.token_limit):
            learnt_limits = self.learnt_limits.learn(refusal, _characters(request))
            return replace(self, learnt_limits=learnt_limits, limit=refusal.limit)
        is_rejection = answer.status in REJECTED
        if dialect := self.dialect.after_rejection(words, sent, is_rejection=is_rejection):
            return replace(self, dialect=dialect)
        if is_rejection and (guessed := token_limits.guess(words, self.limit)):
            learnt_limits = self.learnt_limits.learn(guessed, _characters(request))
            return replace(self, learnt_limits=learnt_limits, limit=guessed.limit)
        return None


@dataclass(slots=True)
class Call:
    """One call while it is made."""

    request: ModelRequest
    on_text: TextCallback | None
    delivery: Delivery = "streamed"
    """How its answer was asked for last."""
    response_id: str = ""
    """What the endpoint calls the answer that it gave last, as far as it has come."""

    def emit(self, text: str, *, is_restart: bool = False) -> None:
        """Pass on what was added to the answer."""
        if self.on_text is None:
            return
        if is_restart:
            self.on_text(text, is_restart=True)
        elif text:
            self.on_text(text)


class HttpProvider(ABC):
    """A Provider for one endpoint."""

    path: ClassVar[str]
    """Where it is asked, below the base address."""
    endings: ClassVar[Sequence[str]] = ()
    """What a base address may end in that is no part of it: `path`, and what people take for it."""
    first_dialect: ClassVar[Dialect] = Dialect()
    most_unwatched_streams: ClassVar[int] = 64
    """How many unwatched answers are streamed at once: each piece costs CPU time, watched or not."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        api_key: str = "",
        key_variable: str = "",
        url_variable: str = "",
        profile: Profile = FULL,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """Open nothing yet; raise SettingsError where `base_url` is no address.

        `name` is the provider's, the variables are those that hold its key and its address: all are for
        messages. An empty key sends none.
        """
        address = Address.parse(base_url, url_variable, self.endings)
        self._name = name
        self._profile = profile
        self._idle_timeout_s = idle_timeout_s
        self._client = EndpointClient(address, self._headers(api_key, address))
        self._failures = Failures(name, address, self.path, api_key, key_variable)
        self._dialects: dict[tuple[str, bool], tuple[Dialect, float]] = {}
        """With the time, in seconds, until which each is remembered."""
        self._token_limits: dict[str, TokenLimits] = {}
        self._deliveries = DeliveryChooser(self.most_unwatched_streams)
        self._had_unopened_thoughts: dict[str, bool] = {}
        """Whether a model's last answer began with thoughts that nothing had opened."""

    @property
    def profile(self) -> Profile:
        """What its models are asked, and how they sample."""
        return self._profile

    def check(self, model: str) -> None:  # noqa: B027  there is nothing to override
        """Accept every name: only the endpoint knows its models."""

    async def complete(self, request: ModelRequest, on_text: TextCallback | None = None) -> ModelReply:
        """Answer one request; raise ModelError when that fails. Cancelling closes the connection at once."""
        call = Call(request, on_text)
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self._negotiate(call)
        except TimeoutError:
            error = timed_out(f"{self._name} ({self._client.host})", request.timeout_s)
        except ModelError as failure:
            error = failure
        error.response_id = error.response_id or call.response_id
        self._deliveries.note_failure(request, call.delivery, error)
        if call.delivery == "whole" and (remembered := self._dialects.get(_dialect_key(request))):
            dialect, until_s = remembered
            self._dialects[_dialect_key(request)] = dialect.with_stream(), until_s
        raise error

    def token_limit(self, request: ModelRequest) -> int:
        """With which limit of tokens a request is made, by what is known of its model."""
        return self._terms(request).limit

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _negotiate(self, call: Call) -> ModelReply:
        """Ask until the endpoint understands.

        One that does not know a parameter is asked again without it, one that takes fewer tokens for fewer,
        and that is remembered: such a refusal is settling on a dialect, no attempt, for no model has been at
        work.
        """
        request = call.request
        terms = self._terms(request)
        changes = 0
        while True:
            call.request = terms.adapt(request)
            try:
                with self._stream_parameters(call, terms.dialect) as parameters:
                    body = {**self._body(call.request, terms.dialect), **parameters}
                    answer = await self._post(call, body)
            except ModelError as error:
                if error.reason == "OUTPUT_TRUNCATED":
                    self._forget_limits(request)
                raise
            if isinstance(answer, ModelReply):
                if changes:
                    self._remember(terms, request)
                is_certain = bool(answer.text.strip()) and not terms.learnt_limits.is_guess
                if answer.finish is Finish.CUT and not (request.prompt.may_be_cut or is_certain):
                    self._forget_limits(request)
                return answer
            changed = terms.after_rejection(answer, body, request)
            if changed is None and call.delivery == "whole" and _asks_for_stream(answer):
                self._deliveries.mark_failed(request, "whole")
                changed = replace(terms, dialect=terms.dialect.with_stream())
            if changed is None or changes == _MOST_CHANGES:
                if call.delivery == "whole" and answer.status in _GATEWAY_TIMEOUTS:
                    self._deliveries.mark_failed(request, "whole")
                raise self._failures.from_status(answer, request.model)
            logger.info("%s/%s refused %s: trying %s", self._name, request.model, terms, changed)
            terms = changed
            changes += 1

    def _terms(self, request: ModelRequest) -> "_RequestTerms":
        """On which terms the endpoint answered such a request the last time."""
        dialect, until_s = self._dialects.get(_dialect_key(request), (self.first_dialect, float("inf")))
        learnt_limits = self._token_limits.get(request.model, TokenLimits())
        return _RequestTerms(
            dialect if time.monotonic() < until_s else self.first_dialect,
            learnt_limits,
            learnt_limits.fit(request.token_limit, _characters(request)),
        )

    def _remember(self, terms: "_RequestTerms", request: ModelRequest) -> None:
        self._dialects[_dialect_key(request)] = terms.dialect, time.monotonic() + _DIALECT_S
        self._token_limits[request.model] = terms.learnt_limits

    def _forget_limits(self, request: ModelRequest) -> None:
        """Ask the endpoint again what it takes: the limit was too low for an answer, and maybe misread."""
        self._token_limits.pop(request.model, None)

    @contextmanager
    def _stream_parameters(self, call: Call, dialect: Dialect) -> Iterator[Mapping[str, object]]:
        """Return the additional parameters of a stream, which is open while the block runs."""
        with self._deliveries.choose(
            call.request, can_stream="stream" not in dialect.omitted
        ) as call.delivery:
            parameters = self._streaming() if call.delivery == "streamed" else {}
            yield {name: it for name, it in parameters.items() if name not in dialect.omitted}

    @abstractmethod
    def _headers(self, api_key: str, address: Address) -> Mapping[str, str]:
        """Return what is sent in every call's head: the key, where there is one."""

    @abstractmethod
    def _body(self, request: ModelRequest, dialect: Dialect) -> dict[str, object]:
        """Return what is posted for an answer in one piece."""

    @abstractmethod
    def _streaming(self) -> Mapping[str, object]:
        """Return what is posted besides for a stream."""

    @abstractmethod
    def _parse(self, body: Mapping[str, Any], request: ModelRequest) -> Content | None:
        """Return what an answer holds; None: no answer at all."""

    def _error(self, body: Mapping[str, Any]) -> object:
        """Return the error in a body or an event that came with a 200; empty: there is none."""
        error = body.get("error") or body.get("errors")
        is_error = body.get("object") == "error" or body.get("type") == "error"  # the first as vLLM writes it
        is_error |= not body.keys() & _ANSWERS and any(isinstance(body.get(it), str) for it in _ERROR_FIELDS)
        return error or (body if is_error else None)

    @abstractmethod
    def _accumulator(self) -> Accumulator:
        """Return an empty answer, for a stream's events."""

    async def _post(self, call: Call, body: Mapping[str, object]) -> ModelReply | HttpResponse:
        """Make one HTTP call. An answer that is no success is given back as it is."""
        write = partial(json_body.dumps, body)
        content = await _unless_small(_characters(call.request) // _WRITTEN_PER_READ, write)
        idle_timeout_s = self._idle_timeout_s if "stream" in body else None
        async with self._client.stream(self.path, content, idle_timeout_s) as streamed:
            kind = streamed.headers.get("Content-Type", "").lower()
            # Some stream unasked. Of those that were asked, whatever else may pass for a stream, these are
            # answers in one piece: errors, mostly.
            is_asked = "stream" in body
            is_stream = "json" not in kind and "html" not in kind if is_asked else "event-stream" in kind
            if is_stream and _is_success(streamed.status):
                return await self._reply_from_stream(streamed, call)
            if not _is_success(streamed.status):
                return await streamed.read_all(MAX_ERROR_BYTES)
            return await self._reply_from_body(await streamed.read_all(), call)

    async def _reply_from_body(self, answer: HttpResponse, call: Call) -> ModelReply | HttpResponse:
        """Return the reply in a success in one piece; raise ModelError where it holds none."""
        read = partial(self._read_body, answer, call.request)
        found = await _unless_small(len(answer.body), read)
        if isinstance(found, HttpResponse):
            return found
        content, text = found
        call.response_id = content.response_id
        reply = self._reply(content, text, call.request)
        call.emit(reply.text)
        self._deliveries.note_reply(call.request, "whole", reply)
        return reply

    def _read_body(
        self, answer: HttpResponse, request: ModelRequest
    ) -> tuple[Content, AnswerText] | HttpResponse:
        """Return what a success holds, with the answer in its text, or the error in it."""
        body = self._object(answer.body)
        if error := self._error(body):
            return self._failures.as_error_response(error, answer.headers)
        content = self._parse(body, request)
        if content is None:
            raise self._failures.invalid("sent JSON with no answer in it", answer.body)
        return content, self._text_of(content, request)

    async def _reply_from_stream(self, streamed: StreamingResponse, call: Call) -> ModelReply | HttpResponse:
        """Return the reply in a stream, emitted as it arrives; raise ModelError where it ends badly."""
        request = call.request
        call.response_id = ""
        accumulator, events = self._accumulator(), SseDecoder()
        answer = AnswerText(is_buffered=self._buffers_until_answer(request.model), is_json=_is_json(request))
        chunks = streamed.chunks()
        broken: ModelError | None = None
        has_started = False
        preludes = 0
        quiet_until_s: float | None = None
        while not (events.has_ended or accumulator.has_ended):
            try:
                async with asyncio.timeout_at(quiet_until_s):
                    chunk = await anext(chunks, None)
            except ModelError as error:
                chunk, broken = None, error
            except TimeoutError:
                chunk, broken = None, self._failures.stream_cut((0, 0))
            if chunk and not has_started and (head := chunk.lstrip(_BLANK)):
                has_started = True
                if head.startswith((b"{", b"<")):
                    others = await streamed.read_all()  # no stream, whatever its type says
                    whole = replace(others, body=head + others.body)
                    return await self._reply_from_body(whole, call)
            changes = accumulator.changes
            for number, event in enumerate(events.flush() if chunk is None else events.feed(chunk), 1):
                if number % _EVENTS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                read = partial(self._add_event, event, accumulator, streamed.headers)
                text = await _unless_small(len(event.data), read)
                if isinstance(text, HttpResponse):
                    if accumulator.has_text or preludes > _MOST_PRELUDES:
                        raise self._failures.from_status(text, request.model)
                    return text
                preludes += 1
                call.response_id = call.response_id or identifier(accumulator.response_id)
                for start in range(0, len(text), LARGEST_PIECE):
                    if start:
                        await asyncio.sleep(0)
                    added = answer.add(text[start : start + LARGEST_PIECE])
                    if answer.blank_run >= MOST_WHITE_SPACE:
                        raise self._blank_run_error(request, self._parse(accumulator.body(), request))
                    call.emit(added, is_restart=answer.has_restarted)
            if chunk is None:
                break
            if len(chunk) > _LARGE_CHUNK_BYTES:
                await asyncio.sleep(0)  # the next one may be there already
            if (
                accumulator.changes != changes
                and (silence_limit_s := accumulator.silence_limit_s) is not None
            ):
                # Never so long that the attempt's time is over before.
                quiet_until_s = asyncio.get_running_loop().time() + min(
                    silence_limit_s, request.timeout_s / 2
                )
        content = self._parse(accumulator.body(), request)
        if not (events.has_ended or accumulator.is_whole(broken)):
            raise broken or self._failures.stream_cut(content.used if content else (0, 0))
        if content is None:
            raise self._failures.invalid("sent a stream with no answer in it")
        call.emit(answer.end(), is_restart=answer.has_restarted)
        if not accumulator.has_text:
            blank = answer.text
            # It may stand where thoughts belong.
            answer = await _unless_small(len(content.text), partial(self._text_of, content, request))
            if answer.text != blank:
                call.emit(answer.text, is_restart=bool(blank))
        reply = self._reply(content, answer, request)
        # Where the stream did not end as it should, the usage, which comes last, may just not have come.
        self._deliveries.note_reply(request, call.delivery, reply, is_complete=broken is None)
        return reply

    def _add_event(
        self, event: Event, accumulator: Accumulator, headers: Mapping[str, str]
    ) -> str | HttpResponse:
        """Apply an event of a stream; return the text that it adds, or the error in it."""
        body, problem = self._decode(event)
        return self._failures.as_error_response(problem, headers) if problem else accumulator.add(body)

    def _decode(self, event: Event) -> tuple[Mapping[str, Any], object]:
        """Return what an event holds, and the error in it, if there is one."""
        is_short = len(event.data) <= _LONGEST_KEEPALIVE
        if event.name in _KEEPALIVE_EVENTS or (is_short and event.data.strip().lower() in _SAYING_NOTHING):
            return {}, None
        if event.name != b"error":
            body = self._object(event.data)
            return body, self._error(body)
        try:
            body = self._object(event.data)
        except ModelError:
            body = {}
        return {}, self._error(body) or body or event.data[:MAX_ERROR_BYTES].decode(errors="replace")

    def _object(self, data: bytes) -> dict[str, Any]:
        """Return a JSON object; raise ModelError where it is none."""
        try:
            value = json_body.loads(data)
        except TooManyValuesError as error:
            raise self._failures.invalid(f"sent JSON that is no answer: {error}", data) from None
        except ValueError:
            raise self._failures.not_json(data) from None
        except RecursionError:
            raise self._failures.invalid("sent JSON that is nested too deeply") from None
        if not isinstance(value, dict):
            raise self._failures.invalid("sent JSON that is no object", data)
        return value

    def _text_of(self, content: Content, request: ModelRequest) -> AnswerText:
        """Return the answer in all that a model has written."""
        answer = AnswerText(is_json=_is_json(request))
        for start in range(0, len(content.text), LARGEST_PIECE):
            answer.add(content.text[start : start + LARGEST_PIECE])
        answer.end()
        return answer

    def _buffers_until_answer(self, model: str) -> bool:
        """Return whether a text is emitted only once it is known to be no thought.

        Thoughts that nothing opens look like an answer until they end, and most models have none. So a model
        is waited for that had such before, or one that is not known yet beside others that do.
        """
        return self._had_unopened_thoughts.get(model, any(self._had_unopened_thoughts.values()))

    def _reply(self, content: Content, answer: AnswerText, request: ModelRequest) -> ModelReply:
        """Build the reply of an answer that has ended, good or not; raise ModelError if the model looped."""
        if answer.has_unopened_thoughts or not _is_json(request):
            self._had_unopened_thoughts[request.model] = answer.has_unopened_thoughts
        if content.refusal is None and answer.blank_run >= MOST_WHITE_SPACE:
            raise self._blank_run_error(request, content)
        finish, why = content.finish, content.reason
        if content.refusal is not None:
            finish, why = Finish.FILTERED, content.refusal
        return ModelReply(
            answer.text,
            *content.used,
            finish=finish,
            response_id=content.response_id,
            explanation=self._failures.quote(why[:MAX_ERROR_BYTES].encode(errors="replace")).removeprefix(
                ". "
            ),
            token_limit=request.token_limit,
            has_thoughts=answer.has_thoughts,
            endpoint=self._failures.endpoint,
        )

    def _blank_run_error(self, request: ModelRequest, content: Content | None) -> ModelError:
        problem = f"sent {MOST_WHITE_SPACE} characters of white space in a row: {request.model} lost its way"
        return self._failures.invalid(problem, used=content.used if content else (0, 0))


async def _unless_small(size: int, read: Callable[[], T]) -> T:
    """Read something of a size at once; beside the event loop where it is larger than `SMALL_BYTES`."""
    return read() if size <= SMALL_BYTES else await offload(read)


def _dialect_key(request: ModelRequest) -> tuple[str, bool]:
    """Return the key of a dialect: some endpoints cannot stream JSON, and some refuse a format."""
    return request.model, request.prompt.schema is not None


def _characters(request: ModelRequest) -> int:
    return sum(len(message.content) for message in request.prompt.messages)


def _asks_for_stream(answer: HttpResponse) -> bool:
    """Return whether an endpoint refuses to answer for the whole."""
    return answer.status in REJECTED and "stream" in error_body.words(answer.body)


def _is_json(request: ModelRequest) -> bool:
    return request.prompt.schema is not None


def _is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def response_id(body: Mapping[str, Any]) -> str:
    """Return the id of an answer; empty where it has none that can be recorded."""
    return identifier(body.get("id"))


def identifier(value: object) -> str:
    """Return an id as it can be recorded; empty for what is none, or is too long or unprintable."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if len(text) <= _LONGEST_ID and text.isprintable() else ""


def count(usage: object, name: str) -> int:
    """Return a number of tokens in an endpoint's usage; 0 where it gives none that makes sense."""
    value = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(value, str) and value.isdecimal():
        value = int(value[:_MOST_DIGITS])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return max(value, 0) if isinstance(value, int) else 0
