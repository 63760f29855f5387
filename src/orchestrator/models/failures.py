"""What an endpoint's failures mean to us: which error, whether trying again can help, and what to change."""

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

from orchestrator.core.plan import well_formed
from orchestrator.core.retry import MAX_RETRY_AFTER_S
from orchestrator.core.state import TOO_LONG
from orchestrator.errors import ModelError
from orchestrator.models.http import Answer

REFUSALS: Final = frozenset({"content_filter", "content_policy_violation", "refusal"})
"""How endpoints name an answer that they or the model will not give."""

_QUOTED_CHARACTERS: Final = 300
_BUSY: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})
_SPENT: Final = ("insufficient_quota", "enforced_spend_limit_reached")
_BAD_KEY: Final = ("api_key_invalid", "api key not valid", "api key expired")
_NO_MODEL: Final = ("no such model", "not a valid model")
_TOO_LONG: Final = (
    "context_length_exceeded",
    "maximum context length",
    "prompt is too long",
    "exceed_context_size",
    "exceeds the available context size",
    "input token count exceeds",
    "exceeds the maximum number of tokens",
)

_STATUSES: Final[Mapping[str, int]] = {
    "invalid_request_error": HTTPStatus.BAD_REQUEST,
    "authentication_error": HTTPStatus.UNAUTHORIZED,
    "billing_error": HTTPStatus.PAYMENT_REQUIRED,
    "permission_error": HTTPStatus.FORBIDDEN,
    "not_found_error": HTTPStatus.NOT_FOUND,
    "request_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "rate_limit_error": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limit_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
    "insufficient_quota": HTTPStatus.TOO_MANY_REQUESTS,
    **dict.fromkeys(REFUSALS, HTTPStatus.BAD_REQUEST),
}
"""The status that an error would have had, had it not come after a 200."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Makes the errors of one endpoint: they name it and quote it, and never show its key."""

    name: str
    host: str
    key: str = ""
    key_variable: str = ""
    """What holds the key; empty: it has none."""

    def of_status(self, answer: Answer, model: str) -> ModelError:
        """What an answer that is no success means."""
        status, body = answer.status, answer.body.decode(errors="replace").lower()
        said = self.quote(answer.body)
        where = f"{self.name} ({self.host})"
        is_bad_request = status == HTTPStatus.BAD_REQUEST
        match status:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return self._unauthenticated(status, model, said)
            case _ if is_bad_request and any(words in body for words in _BAD_KEY):
                return self._unauthenticated(status, model, said)
            case HTTPStatus.NOT_FOUND:
                return self._no_model(model, said)
            case _ if is_bad_request and any(words in body for words in _NO_MODEL):
                return self._no_model(model, said)
            case HTTPStatus.TOO_MANY_REQUESTS:
                # An empty account is told as a rate limit, but no waiting fills it.
                retryable = not any(word in body for word in _SPENT)
                message = f"{where} limits the rate of calls{said}"
                wait_s = retry_after_s(answer.headers)
                return ModelError("RATE_LIMITED", message, retryable=retryable, retry_after_s=wait_s)
            case _ if status in _BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                message = f"{where} could not answer now, status {status}{said}"
                wait_s = retry_after_s(answer.headers)
                return ModelError("OVERLOADED", message, retryable=True, retry_after_s=wait_s)
            case _ if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (
                is_bad_request and any(words in body for words in _TOO_LONG)
            ):
                message = f"{where} says that {model!r} was given more than it takes{said}"
                return ModelError(TOO_LONG, message, retryable=True)
            case _ if any(f'"{word}"' in body for word in REFUSALS):
                return ModelError("MODEL_REFUSED", f"{where} refused the prompt{said}", retryable=False)
            case _:
                message = f"{where} rejected the request with {status}{said}"
                return ModelError("REQUEST_REJECTED", message, retryable=False)

    def in_answer(self, error: object, model: str) -> ModelError:
        """What an error means that came after a 200, as the whole answer or in the midst of a stream."""
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR
        match error:
            case {"code": int(code)} if HTTPStatus.BAD_REQUEST <= code < 600:  # noqa: PLR2004  no status beyond
                status = code
            case {"code": str(word)} | {"type": str(word)} if word in _STATUSES:
                status = _STATUSES[word]
        body = json.dumps({"error": error}, ensure_ascii=False).encode(errors="replace")
        return self.of_status(Answer(status, {}, body), model)

    def invalid(self, problem: str, body: bytes = b"", used: tuple[int, int] = (0, 0)) -> ModelError:
        """An answer that cannot be read. `used`: the tokens it cost, of input and of output."""
        message = f"{self.name} ({self.host}) {problem}{self.quote(body)}"
        return _failed("OUTPUT_INVALID", message, used)

    def cut(self, used: tuple[int, int]) -> ModelError:
        """A stream that ended before the answer did."""
        message = f"{self.name} ({self.host}) ended the stream before the answer was complete"
        return _failed("STREAM_CUT", message, used)

    def truncated(self, model: str, limit: int, used: tuple[int, int]) -> ModelError:
        """An answer that was cut off at so many tokens."""
        message = f"{model} was cut off at {limit} tokens: allow more max_output_tokens"
        return _failed("OUTPUT_TRUNCATED", message, used)

    def refused(self, model: str, why: str, used: tuple[int, int]) -> ModelError:
        """A model that will not answer, and what it says to that."""
        message = f"{model} refused to answer{self.quote(why.encode()) or ' (content filter)'}"
        return _failed("MODEL_REFUSED", message, used, retryable=False)

    def quote(self, body: bytes) -> str:
        """What the endpoint said, short, in one line and without our key; empty where it said nothing."""
        text = body.decode(errors="replace")
        with contextlib.suppress(ValueError, RecursionError):
            text = _explanation(json.loads(text)) or text
        if self.key:
            text = text.replace(self.key, "***")
        text = well_formed(text)
        text = " ".join(
            "".join(c if c.isprintable() else " " for c in text[: 8 * _QUOTED_CHARACTERS]).split()
        )
        if len(text) > _QUOTED_CHARACTERS:
            text = f"{text[:_QUOTED_CHARACTERS]}…"
        return f". It said: {text}" if text else ""

    def _unauthenticated(self, status: int, model: str, said: str) -> ModelError:
        mend = f"check {self.key_variable}" if self.key_variable else "check its key"
        if status == HTTPStatus.FORBIDDEN:
            mend += f", and that it may use {model!r}"
        message = f"{self.name} ({self.host}) refused the key with {status}: {mend}{said}"
        return ModelError("MODEL_UNAUTHENTICATED", message, retryable=False)

    def _no_model(self, model: str, said: str) -> ModelError:
        where = f"{self.name} ({self.host})"
        message = f"{where} has no model {model!r}, or the address is wrong: check both{said}"
        return ModelError("MODEL_NOT_FOUND", message, retryable=False)


def _failed(reason: str, message: str, used: tuple[int, int], *, retryable: bool = True) -> ModelError:
    return ModelError(reason, message, retryable=retryable, input_tokens=used[0], output_tokens=used[1])


def _explanation(body: Any) -> str:
    """The sentence for people in an error body of any common shape; empty: none found."""
    match body:
        case str():
            return body
        case [first, *_] | {"errors": [first, *_]}:
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
