"""What all providers behind an HTTP endpoint have in common: how a call is made, and when it has failed.

An API's own module says how it is asked, and how its answers and its streams are read.
"""

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, ClassVar, Final, Literal, Protocol

from orchestrator.core.plan import well_formed
from orchestrator.core.prompts import FULL, Profile
from orchestrator.errors import ModelError
from orchestrator.models import error_body, token_limits
from orchestrator.models.base import ModelReply, ModelRequest, OnText, late
from orchestrator.models.failures import INVALID_ANSWER, Failures
from orchestrator.models.http import IDLE_TIMEOUT_S, Answer, Client, Incoming
from orchestrator.models.streaming import Events, Speech
from orchestrator.models.structured import REJECTED, Dialect
from orchestrator.models.token_limits import TokenLimits

MOST_WHITE_SPACE: Final = 1000
"""So many characters of white space in a row come from a model that is lost in a grammar."""

_MOST_CHANGES: Final = 16
"""So many refusals are learnt from in one call: an endpoint that goes on refusing means something else."""
_ABOUT_OTHERS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
"""Statuses of refusals that no other request would mend."""
_MOST_PRELUDES: Final = 3  # events of a stream before an answer: its start, a ping, a role
_REST_S: Final = 1.0  # so long a whole answer waits for what follows it, which is its usage

logger = logging.getLogger(__name__)

Way = Literal["streamed", "whole"]
"""How an answer comes."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer holds, in whichever API it came."""

    text: str
    is_cut: bool = False
    """Whether it ended at the token limit."""
    refusal: str | None = None
    """Why the model will not answer, which may be empty; None: it does answer."""
    used: tuple[int, int] = (0, 0)
    """Tokens of input and of output, by the endpoint's count."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """How a call is made: what the endpoint has not refused so far."""

    dialect: Dialect
    known: TokenLimits
    """What is known of the model's limits."""
    limit: int
    """How many tokens this call asks for."""

    def adapt(self, request: ModelRequest) -> ModelRequest:
        """The request on these terms."""
        prompt = self.dialect.adapt(request.prompt)
        return request._replace(prompt=prompt, max_output_tokens=self.limit)

    def after(self, answer: Answer, sent: Mapping[str, object], request: ModelRequest) -> "_Terms | None":
        """The terms to try next after a refusal; None: it is about something else."""
        words = error_body.words(answer.body)
        if answer.status in _ABOUT_OTHERS or INVALID_ANSWER.search(words):
            return None
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS and not token_limits.PER_TIME.search(words):
            return None
        if refusal := token_limits.refusal(words, self.limit, request.token_limit):
            known = self.known.learn(refusal, _characters(request))
            return replace(self, known=known, limit=refusal.limit)
        dialect = self.dialect.after(words, sent, is_rejection=answer.status in REJECTED)
        return None if dialect is None else replace(self, dialect=dialect)


class Draft(Protocol):
    """An answer that is being streamed."""

    @property
    def is_whole(self) -> bool:
        """Whether the model has come to its end."""

    def add(self, event: Mapping[str, Any]) -> str:
        """Take in the next event; the text that it adds."""

    def body(self) -> Mapping[str, Any]:
        """The body that an answer in one piece would have had, as far as it has come."""


class HttpProvider(ABC):
    """A Provider for one endpoint."""

    path: ClassVar[str]
    """Where it is asked, below the base address."""
    first_dialect: ClassVar[Dialect] = Dialect()
    most_unwatched_streams: ClassVar[int] = 64
    """So many answers that nobody watches are streamed at once: each piece costs CPU time, watched or not."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        headers: Mapping[str, str],
        api_key: str = "",
        key_variable: str = "",
        profile: Profile = FULL,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """Open nothing yet; raise SettingsError where `base_url` is no address.

        `name` is the provider's, `key_variable` the variable that holds its key: both are for messages.
        """
        self._name = name
        self._profile = profile
        self._idle_timeout_s = idle_timeout_s
        self._client = Client(base_url, headers)
        self._failures = Failures(name, self._client.host, api_key, key_variable)
        self._dialects: dict[tuple[str, bool], Dialect] = {}
        self._token_limits: dict[str, TokenLimits] = {}
        self._untold: dict[str, set[Way]] = {}
        """In which ways a model has answered without telling what it used."""
        self._unwatched_streams = 0

    @property
    def profile(self) -> Profile:
        """What its models are asked, and how they sample."""
        return self._profile

    def check(self, model: str) -> None:  # noqa: B027  there is nothing to override
        """Which models there are, only the endpoint knows."""

    async def complete(self, request: ModelRequest, on_text: OnText | None = None) -> ModelReply:
        """Answer one request; raise ModelError when that fails. Cancelling closes the connection at once."""
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self._settle(request, on_text)
        except TimeoutError:
            raise late(f"{self._name} ({self._client.host})", request.timeout_s) from None

    def token_limit(self, request: ModelRequest) -> int:
        """With which limit of tokens a request is made, by what is known of its model."""
        return self._terms(request).limit

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _settle(self, request: ModelRequest, on_text: OnText | None) -> ModelReply:
        """Ask until the endpoint understands.

        One that does not know a parameter is asked again without it, one that takes fewer tokens for fewer,
        and that is remembered: such a refusal is settling on a dialect, no attempt, for no model has been at
        work.
        """
        terms = self._terms(request)
        changes = 0
        while True:
            adapted = terms.adapt(request)
            try:
                with self._stream_parameters(request, terms.dialect) as parameters:
                    body = {**self._body(adapted, terms.dialect), **parameters}
                    answer = await self._ask(adapted, body, on_text)
            except ModelError as error:
                if error.reason == "OUTPUT_TRUNCATED":
                    # What cut the answer may be a limit that was misread: the endpoint is asked again.
                    self._token_limits.pop(request.model, None)
                raise
            if isinstance(answer, ModelReply):
                if changes:
                    self._dialects[_kind(request)] = terms.dialect
                    self._token_limits[request.model] = terms.known
                return answer
            changed = terms.after(answer, body, request) if changes < _MOST_CHANGES else None
            if changed is None:
                raise self._failures.of_status(answer, request.model)
            logger.info("%s/%s refused %s: trying %s", self._name, request.model, terms, changed)
            terms = changed
            changes += 1

    def _terms(self, request: ModelRequest) -> "_Terms":
        """On which terms the endpoint answered such a request the last time."""
        known = self._token_limits.get(request.model, TokenLimits())
        return _Terms(
            self._dialects.get(_kind(request), self.first_dialect),
            known,
            known.fit(request.token_limit, _characters(request)),
        )

    @contextmanager
    def _stream_parameters(self, request: ModelRequest, dialect: Dialect) -> Iterator[Mapping[str, object]]:
        """What is posted besides, for a stream that is open while the block runs; nothing: for no stream."""
        is_blind = self._untold.get(request.model) == {"streamed"}
        is_counted = not request.is_watched
        is_too_many = is_counted and self._unwatched_streams >= self.most_unwatched_streams
        if "stream" in dialect.left_out or is_blind or is_too_many:
            yield {}
            return
        self._unwatched_streams += is_counted
        try:
            yield {name: it for name, it in self._streaming().items() if name not in dialect.left_out}
        finally:
            self._unwatched_streams -= is_counted

    def _note_usage(self, reply: ModelReply, model: str, way: Way) -> None:
        """Remember where a model does not tell what it used: budgets would be blind to it."""
        if not (reply.input_tokens or reply.output_tokens):
            self._untold.setdefault(model, set()).add(way)

    @abstractmethod
    def _body(self, request: ModelRequest, dialect: Dialect) -> dict[str, object]:
        """What is posted for an answer in one piece."""

    @abstractmethod
    def _streaming(self) -> Mapping[str, object]:
        """What is posted besides for a stream."""

    @abstractmethod
    def _said(self, body: Mapping[str, Any], request: ModelRequest) -> Said | None:
        """What an answer holds; None: no answer at all."""

    def _error(self, body: Mapping[str, Any]) -> object:
        """The error in what came with a 200, be it a whole answer or an event; nothing: there is none."""
        if body.get("object") == "error":  # as vLLM writes it
            return body
        return body.get("error") or body.get("errors")

    @abstractmethod
    def _draft(self) -> Draft:
        """An empty answer, for a stream's events."""

    async def _ask(
        self, request: ModelRequest, body: Mapping[str, object], on_text: OnText | None
    ) -> ModelReply | Answer:
        """Make one HTTP call. An answer that is no success is given back as it is."""
        # A lone surrogate, which a client may have sent as \ud800, has no UTF-8: it becomes a question mark.
        content = json.dumps(body, ensure_ascii=False).encode(errors="replace")
        if "stream" not in body:
            return self._read(await self._client.post(self.path, content), request, on_text)
        async with self._client.stream(self.path, content, self._idle_timeout_s) as incoming:
            kind = incoming.headers.get("Content-Type", "")
            # Whatever else may pass for a stream, these are answers in one piece: errors, mostly.
            if not _is_success(incoming.status) or "json" in kind or "html" in kind:
                return self._read(await incoming.whole(), request, on_text)
            return await self._follow(incoming, request, on_text)

    def _read(self, answer: Answer, request: ModelRequest, on_text: OnText | None) -> ModelReply | Answer:
        """The reply in an answer in one piece; raise ModelError where a success holds none."""
        if not _is_success(answer.status):
            return answer
        body = self._object(answer.body)
        if error := self._error(body):
            return self._failures.in_answer(error, answer.headers)
        reply = self._reply(body, answer.body, request)
        if on_text is not None:
            on_text(reply.text)
        self._note_usage(reply, request.model, "whole")
        return reply

    async def _follow(
        self, incoming: Incoming, request: ModelRequest, on_text: OnText | None
    ) -> ModelReply | Answer:
        """The reply in a stream, told as it comes; raise ModelError where it comes to no good end."""
        draft, speech, events = self._draft(), Speech(), Events()
        chunks = incoming.chunks()
        broken: ModelError | None = None
        has_begun = has_spoken = False
        preludes = 0
        late_s: float | None = None
        while not events.have_ended:
            try:
                async with asyncio.timeout_at(late_s):
                    chunk = await anext(chunks, None)
            except ModelError as error:
                chunk, broken = None, error
            except TimeoutError:
                chunk, broken = None, self._failures.cut((0, 0))
            if chunk and not has_begun and chunk.lstrip().startswith(b"{"):
                others = await incoming.whole()  # no stream, whatever its type says
                return self._read(replace(others, body=chunk + others.body), request, on_text)
            has_begun = True
            for data in events.rest() if chunk is None else events.feed(chunk):
                event = self._object(data)
                if problem := self._error(event):
                    failure = self._failures.in_answer(problem, incoming.headers)
                    if has_spoken or preludes > _MOST_PRELUDES:
                        raise self._failures.of_status(failure, request.model)
                    return failure
                text = speech.add(draft.add(event))
                has_spoken = has_spoken or bool(text)
                preludes += 1
                if speech.blank_run >= MOST_WHITE_SPACE:
                    raise self._went_blank(request, draft.body())
                if text and on_text is not None:
                    on_text(well_formed(text))
            if chunk is None:
                break
            if draft.is_whole and late_s is None:
                late_s = asyncio.get_running_loop().time() + _REST_S
        # Whoever has come to its end has said it all, whether or not the stream was closed as it should be.
        if not draft.is_whole:
            said = self._said(draft.body(), request)
            raise broken or self._failures.cut(said.used if said else (0, 0))
        reply = self._reply(draft.body(), b"", request)
        if on_text is not None and (rest := speech.rest(reply.text)):
            on_text(rest)
        if broken is None:  # otherwise the usage, which comes last, may just not have come
            self._note_usage(reply, request.model, "streamed")
        return reply

    def _object(self, data: bytes) -> dict[str, Any]:
        """A JSON object; raise ModelError where it is none."""
        try:
            value = json.loads(data)
        except ValueError:
            raise self._failures.invalid("sent what is not JSON", data) from None
        except RecursionError:
            raise self._failures.invalid("sent JSON that is nested too deeply") from None
        if not isinstance(value, dict):
            raise self._failures.invalid("sent JSON that is no object", data)
        return value

    def _reply(self, body: Mapping[str, Any], raw: bytes, request: ModelRequest) -> ModelReply:
        said = self._said(body, request)
        if said is None:
            raise self._failures.invalid("sent JSON with no answer in it", raw)
        if said.refusal is not None:
            raise self._failures.refused(request.model, said.refusal, said.used)
        text = said.text.rstrip()
        if len(said.text) - len(text) >= MOST_WHITE_SPACE:
            raise self._went_blank(request, body)
        if said.is_cut and not (text and request.prompt.may_be_cut):
            raise self._failures.truncated(request.model, request.token_limit, said.used)
        if not text:
            raise self._failures.invalid("sent an empty answer", used=said.used)
        return ModelReply(well_formed(said.text), *said.used)

    def _went_blank(self, request: ModelRequest, body: Mapping[str, Any]) -> ModelError:
        said = self._said(body, request)
        problem = f"sent {MOST_WHITE_SPACE} characters of white space in a row: {request.model} lost its way"
        return self._failures.invalid(problem, used=said.used if said else (0, 0))


def _kind(request: ModelRequest) -> tuple[str, bool]:
    """What a dialect is remembered for: some endpoints cannot stream JSON, and some refuse a format."""
    return request.model, request.prompt.schema is not None


def _characters(request: ModelRequest) -> int:
    return sum(len(message.content) for message in request.prompt.messages)


def _is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def count(usage: object, name: str) -> int:
    """A number of tokens in an endpoint's usage; 0 where it gives none that makes sense."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return max(value, 0) if isinstance(value, int) else 0
