"""Models behind an OpenAI-compatible endpoint: `POST {base}/chat/completions`.

Asking and reading are lenient where endpoints are known to differ and typed where they fail: whatever goes
wrong is a ModelError whose reason tells the caller whether trying again can help.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

from orchestrator.core.plan import well_formed
from orchestrator.core.prompts import FULL, Profile
from orchestrator.errors import ModelError, SettingsError
from orchestrator.models.base import ModelReply, ModelRequest
from orchestrator.models.http import Answer, Client
from orchestrator.models.structured import REJECTED, Dialect

MAX_RETRY_AFTER_S: Final = 3600.0
"""The longest wait that an endpoint can ask for: some have asked for years."""

_QUOTED_CHARACTERS: Final = 300
_THOUGHTS: Final = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
_BUSY: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})
_REFUSALS: Final = frozenset({"content_filter", "content_policy_violation"})

logger = logging.getLogger(__name__)


class ChatCompletions:
    """A Provider for one endpoint."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        api_key: str = "",
        key_variable: str = "",
        key_needed: bool = False,
        profile: Profile = FULL,
    ) -> None:
        """Open nothing yet; raise SettingsError where `base_url` is no address.

        `name` is the provider's, `key_variable` the variable that holds its key: both are for messages.
        An empty key sends none, as local servers want it, unless one is needed: then every call fails.
        """
        self._name = name
        self._key = api_key
        self._key_variable = key_variable
        self._key_missing = key_needed and not api_key
        self._profile = profile
        self._client = Client(base_url, {"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._dialects: dict[str, Dialect] = {}

    @property
    def profile(self) -> Profile:
        """What its models are asked, and how they sample."""
        return self._profile

    def check(self, model: str) -> None:
        """Raise SettingsError where the key is missing that every call needs."""
        if self._key_missing:
            raise SettingsError(
                f"no key for {self._name}/{model}: set {self._key_variable}, "
                "or choose a model of another provider"
            )

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Answer one request; raise ModelError when that fails. Cancelling closes the connection at once.

        An endpoint that does not know a parameter is asked again without it, and that is remembered: such a
        refusal is settling on a dialect, no attempt, for no model has been at work.
        """
        try:
            self.check(request.model)
        except SettingsError as error:
            raise ModelError("MODEL_UNAUTHENTICATED", str(error), retryable=False) from None
        deadline_s = asyncio.get_running_loop().time() + request.timeout_s
        dialect = self._dialects.get(request.model, Dialect())
        while True:
            left_s = deadline_s - asyncio.get_running_loop().time()
            answer = await self._client.post("chat/completions", _body(request, dialect), left_s)
            if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
                self._dialects[request.model] = dialect
                return self._read(answer, request)
            if answer.status not in REJECTED:
                raise self._failure(answer, request.model)
            refusal = answer.body.decode(errors="replace")
            changed = dialect.after(refusal, asked_for_json=request.prompt.schema is not None)
            if changed is None:
                raise self._failure(answer, request.model)
            logger.info("%s/%s refused %s: trying %s", self._name, request.model, dialect, changed)
            dialect = changed

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _failure(self, answer: Answer, model: str) -> ModelError:
        """What an answer that is no success means."""
        status = answer.status
        said = self._quote(answer.body)
        where = f"{self._name} ({self._client.host})"
        match status:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                mend = f"check {self._key_variable}" if self._key_variable else "check its key"
                if status == HTTPStatus.FORBIDDEN:
                    mend += f", and that it may use {model!r}"
                message = f"{where} refused the key with {status}: {mend}{said}"
                return ModelError("MODEL_UNAUTHENTICATED", message, retryable=False)
            case HTTPStatus.NOT_FOUND:
                message = f"{where} has no model {model!r}, or the address is wrong: check both{said}"
                return ModelError("MODEL_NOT_FOUND", message, retryable=False)
            case HTTPStatus.TOO_MANY_REQUESTS:
                # An empty account is told as a rate limit, but no waiting fills it.
                retryable = "insufficient_quota" not in said
                message = f"{where} limits the rate of calls{said}"
                wait_s = retry_after_s(answer.headers)
                return ModelError("RATE_LIMITED", message, retryable=retryable, retry_after_s=wait_s)
            case _ if status in _BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                message = f"{where} could not answer now, status {status}{said}"
                wait_s = retry_after_s(answer.headers)
                return ModelError("OVERLOADED", message, retryable=True, retry_after_s=wait_s)
            case _ if any(f'"{word}"' in answer.body.decode(errors="replace") for word in _REFUSALS):
                return ModelError("MODEL_REFUSED", f"{where} refused the prompt{said}", retryable=False)
            case _:
                message = f"{where} rejected the request with {status}{said}"
                return ModelError("REQUEST_REJECTED", message, retryable=False)

    def _read(self, answer: Answer, request: ModelRequest) -> ModelReply:
        """The reply in a successful answer; raise ModelError where it holds none."""
        try:
            body = json.loads(answer.body)
        except ValueError:
            raise self._invalid("sent what is not JSON", answer.body) from None
        except RecursionError:
            raise self._invalid("sent JSON that is nested too deeply") from None
        if not isinstance(body, dict):
            raise self._invalid("sent JSON that is no object", answer.body)
        usage = body.get("usage")
        used = (_count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))
        match body:
            case {"choices": [{"message": {**message}} as choice, *_]}:
                pass
            case {"error": error} if error:
                raise self._invalid("answered 200 with an error", answer.body, used)
            case _:
                raise self._invalid("answered without a choice", answer.body, used)
        finish = choice.get("finish_reason")
        if message.get("refusal") or finish in _REFUSALS:
            said = self._quote(str(message.get("refusal") or "").encode())
            problem = f"{request.model} refused to answer{said or ' (content filter)'}"
            raise _failed("MODEL_REFUSED", problem, used, retryable=False)
        if finish == "length" and not request.prompt.may_be_cut:
            limit = request.token_limit
            problem = f"{request.model} was cut off at {limit} tokens: allow more max_output_tokens"
            raise _failed("OUTPUT_TRUNCATED", problem, used)
        text = _text(message.get("content"))
        if not text.strip() and request.prompt.schema is not None:
            # Some reasoning models leave the JSON where their thoughts belong.
            text = _text(message.get("reasoning_content") or message.get("reasoning"))
        text = _THOUGHTS.sub("", text, count=1) if text.lstrip().startswith("<think>") else text
        if not text.strip():
            raise self._invalid("sent an empty answer", b"", used)
        return ModelReply(well_formed(text), *used)

    def _invalid(self, problem: str, body: bytes = b"", used: tuple[int, int] = (0, 0)) -> ModelError:
        return _failed(
            "OUTPUT_INVALID", f"{self._name} ({self._client.host}) {problem}{self._quote(body)}", used
        )

    def _quote(self, body: bytes) -> str:
        """What the endpoint said, short, in one line and without our key; empty where it said nothing."""
        text = body.decode(errors="replace")
        with contextlib.suppress(ValueError, RecursionError):
            text = _explanation(json.loads(text)) or text
        if self._key:
            text = text.replace(self._key, "***")
        text = well_formed(text)
        text = " ".join(
            "".join(c if c.isprintable() else " " for c in text[: 8 * _QUOTED_CHARACTERS]).split()
        )
        if len(text) > _QUOTED_CHARACTERS:
            text = f"{text[:_QUOTED_CHARACTERS]}…"
        return f". It said: {text}" if text else ""


def _body(request: ModelRequest, dialect: Dialect) -> bytes:
    prompt = request.prompt
    body: dict[str, object] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        dialect.token_limit: request.token_limit,
        **prompt.sampling,
    }
    if prompt.schema is not None and (response_format := dialect.response_format(prompt.schema)):
        body["response_format"] = response_format
    # A lone surrogate, which a client may have sent as \ud800, has no UTF-8: it becomes a question mark.
    return json.dumps(body, ensure_ascii=False).encode(errors="replace")


def _failed(reason: str, problem: str, used: tuple[int, int], *, retryable: bool = True) -> ModelError:
    return ModelError(reason, problem, retryable=retryable, input_tokens=used[0], output_tokens=used[1])


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return max(value, 0) if isinstance(value, int) else 0


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


def _explanation(body: Any) -> str:
    """The sentence for people in an error body of any common shape; empty: none found."""
    match body:
        case str():
            return body
        case [first, *_]:
            return _explanation(first)
        case {"error": error} if error:
            return _explanation(error)
        case {"message": str(message), "code": str(code)}:
            return f"{message} ({code})"
        case {"message": str(text)} | {"detail": str(text)}:
            return text
        case _:
            return ""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How many seconds the endpoint asks to wait, 0 to MAX_RETRY_AFTER_S; None: it does not say.

    A date is measured by the endpoint's own clock where it sends one.
    """
    for name, per_second in (("Retry-After-Ms", 1000), ("Retry-After", 1)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"[0-9]{1,15}(\.[0-9]*)?", value):
            return min(float(value) / per_second, MAX_RETRY_AFTER_S)
    until_s = _epoch_s(headers.get("Retry-After", ""))
    if until_s is None:
        return None
    now_s = _epoch_s(headers.get("Date", "")) or time.time()
    return min(max(until_s - now_s, 0.0), MAX_RETRY_AFTER_S)


def _epoch_s(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
