"""What an endpoint's failures mean to us: which error, whether trying again can help, and what to change."""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urljoin

from orchestrator.core.instance import TOO_LONG
from orchestrator.core.plan import well_formed
from orchestrator.core.retry import MAX_RETRY_AFTER_S
from orchestrator.errors import PAGE_QUOTATION, QUOTATION, AddressError, ModelError, SettingsError
from orchestrator.models.http import error_body, scope, token_limits, waits, web_page
from orchestrator.models.http.address import Address
from orchestrator.models.http.client import PROXY_LOGIN, HttpResponse, tls_required_error

REFUSALS: Final = frozenset({"content_filter", "content_policy_violation", "refusal"})
"""How endpoints name an answer that they or the model will not give."""

INVALID_ANSWER: Final = re.compile(
    r"json_validate_failed|tool_use_failed|generated json does not match"
    r"|(?:not|n't|failed to|unable to) (?:generate|produce|return|validate)[^\n]{0,20} json"
)
"""How an endpoint that looks at an answer itself says that it is not what was asked for."""

MAX_ERROR_BYTES: Final = 64 * 1024
"""How much is read of what an endpoint says of an error."""
_QUOTED_CHARACTERS: Final = 300
_BUSY: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})
_QUOTA_EXHAUSTED: Final = ("insufficient_quota", "enforced_spend_limit_reached")
_BAD_KEY: Final = ("api_key_invalid", "api key not valid", "api key expired")
_NO_MODEL: Final = ("no such model", "not a valid model")
_NOT_THERE: Final = re.compile(
    r"(?:unexpected|unknown|invalid|no such|not a valid) (?:endpoint|url|path|route|model)|no models? loaded"
    r"|\bmodel\b[^\n]{0,60}\b(?:not found|not exist|not loaded)|^not found$",
    re.MULTILINE,
)
"""How an endpoint says after a 200 that there is nothing at the address, or no such model."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_TLS_IS_SPOKEN: Final = re.compile(
    r"http request (?:was sent )?to (?:an )?https (?:port|server)|plain http to an ssl|port requires tls"
)
"""How nginx, Go, Apache and Tomcat answer plain HTTP at a TLS port."""
_ABOUT_MODELS: Final = re.compile(r"\b(?:models?|deployments?)\b")
_NO_PATH: Final = re.compile(
    r"(?:unexpected|unknown|invalid|no such) (?:endpoint|url|path|route|request url|method)"
    r"|not[ _]found|no route|cannot post|method not allowed|no static resource",
)
"""How a server says that there is nothing at a path."""
_FEWEST_SECRET_CHARACTERS: Final = 8
"""What is shorter is no secret, as the `x` or `EMPTY` that local servers are given for a key."""
_TRUNCATED_JSON: Final = "max completion tokens reached"
"""What it says of one that came to no end."""

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
    address: Address
    path: str
    """What is called below the address."""
    key: str = field(default="", repr=False)
    key_variable: str = ""
    """What holds the key; empty: it has none."""

    @property
    def endpoint(self) -> str:
        """The endpoint, for messages."""
        return f"{self.name} ({self.address.netloc})"

    def from_status(self, answer: HttpResponse, model: str) -> ModelError:
        """Return what an answer that is no success means."""
        status, body = answer.status, error_body.words(answer.body)
        said, endpoint = self.quote(answer.body), self.endpoint
        is_bad_request = status == HTTPStatus.BAD_REQUEST
        match status:
            case _ if status in _REDIRECTS and "Location" in answer.headers:
                return self._redirected(answer, said)
            case _ if is_bad_request and _TLS_IS_SPOKEN.search(body):
                return tls_required_error(endpoint, self.address.setting, said)
            case HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                problem = f"the system's proxy lets no call through to {endpoint}"
                return AddressError("REQUEST_REJECTED", problem, PROXY_LOGIN.format(scheme="HTTP"), said)
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return self._unauthenticated(status, model, said)
            case _ if is_bad_request and any(words in body for words in _BAD_KEY):
                return self._unauthenticated(status, model, said)
            case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
                return self._not_found(answer, model, body, said)
            case _ if is_bad_request and any(words in body for words in _NO_MODEL):
                return self._no_model(model, said)
            case _ if token_limits.THINKING_EXHAUSTED.search(body):
                message = f"{model} used all its tokens up for thinking: allow more max_output_tokens{said}"
                return _failed("OUTPUT_TRUNCATED", message)
            case _ if INVALID_ANSWER.search(body):
                if _TRUNCATED_JSON in body:
                    message = f"{model} was cut off before its JSON ended: allow more max_output_tokens{said}"
                    return _failed("OUTPUT_TRUNCATED", message)
                return self.invalid("says that the answer was not the JSON that was asked for", answer.body)
            case _ if status == HTTPStatus.TOO_MANY_REQUESTS or (
                status < HTTPStatus.INTERNAL_SERVER_ERROR and token_limits.PER_TIME.search(body)
            ):
                # An empty account is reported as a rate limit, but no waiting fills it.
                retryable = not any(word in body for word in _QUOTA_EXHAUSTED)
                message = f"{endpoint} limits the rate of calls{said}"
                wait_s = _believed_wait_s(answer)
                is_shared = scope.is_shared_limit(body, model)
                return ModelError(
                    "RATE_LIMITED", message, retryable=retryable, retry_after_s=wait_s, is_shared=is_shared
                )
            case _ if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (
                status != HTTPStatus.PAYMENT_REQUIRED and token_limits.is_too_long(body)
            ):
                message = f"{endpoint} says that {model!r} was given more than it takes{said}"
                return ModelError(TOO_LONG, message, retryable=True)
            case _ if status in _BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                message = f"{endpoint} could not answer now, status {status}{said}"
                is_shared = scope.is_shared_fault(status, body, model)
                wait_s = _believed_wait_s(answer)
                return ModelError(
                    "OVERLOADED", message, retryable=True, retry_after_s=wait_s, is_shared=is_shared
                )
            case _ if REFUSALS.intersection(body.splitlines()):
                return ModelError("MODEL_REFUSED", f"{endpoint} refused the prompt{said}", retryable=False)
            case _:
                message = f"{endpoint} rejected the request with {status}{said}"
                return ModelError("REQUEST_REJECTED", message, retryable=False)

    def as_error_response(self, error: object, headers: Mapping[str, str]) -> HttpResponse:
        """Give an error that came after a 200, whole or in a stream, as the answer that should have come."""
        said = json.dumps({"error": error}, ensure_ascii=False)[:MAX_ERROR_BYTES]
        body = said.encode(errors="replace")
        return HttpResponse(_status_in(error, error_body.words(body)), headers, body)

    def invalid(self, problem: str, body: bytes = b"", used: tuple[int, int] = (0, 0)) -> ModelError:
        """Return an answer that cannot be read. `used`: the tokens it cost, of input and of output."""
        message = f"{self.endpoint} {problem}{self.quote(body)}"
        return _failed("OUTPUT_INVALID", message, used)

    def not_json(self, body: bytes) -> ModelError:
        """Return an answer that is not JSON: perhaps a page of a proxy in between."""
        if not web_page.is_page(body[:MAX_ERROR_BYTES].decode(errors="replace")):
            return self.invalid("sent what is not JSON", body)
        doubts = f"is {self.address.setting} right, or is it a proxy's page, or one to log in on?"
        return self.invalid(f"sent a web page in place of an answer: {doubts}", body)

    def stream_cut(self, used: tuple[int, int]) -> ModelError:
        """Return a stream that ended before the answer did."""
        message = f"{self.endpoint} ended the stream before the answer was complete"
        return _failed("STREAM_CUT", message, used)

    def quote(self, body: bytes) -> str:
        """Quote what the endpoint said, in one short line without our key; empty where it said nothing."""
        text = body[:MAX_ERROR_BYTES].decode(errors="replace")
        with contextlib.suppress(ValueError, RecursionError):
            text = _explanation(json.loads(text)) or text
        is_page = web_page.is_page(text)
        if is_page:
            text = web_page.title(text)
        for secret in (self.key, *self.address.secrets):
            if len(secret) >= _FEWEST_SECRET_CHARACTERS:
                text = text.replace(secret, "***")
        text = well_formed(text)
        text = " ".join(
            "".join(c if c.isprintable() else " " for c in text[: 8 * _QUOTED_CHARACTERS]).split()
        )
        if len(text) > _QUOTED_CHARACTERS:
            text = f"{text[:_QUOTED_CHARACTERS]}…"
        if not text:
            return ""
        return f"{PAGE_QUOTATION if is_page else QUOTATION}{text}"

    def _unauthenticated(self, status: int, model: str, said: str) -> ModelError:
        if self.address.login:
            problem, place = "the login that the service has for it", self.address.setting
        elif self.key or not self.key_variable:
            problem, place = "the service's key", self.key_variable or "its key"
        else:
            problem, place = "a call without a key", self.key_variable
        mend = f"check {place}"
        if status == HTTPStatus.FORBIDDEN:
            mend += f", and that it may use {model!r}"
        if self.key_variable or self.address.variable:
            mend += ", where the service is started, and restart it: it reads that when it starts"
        message = f"{self.endpoint} refused {problem} with {status}: {mend}{said}"
        return ModelError("MODEL_UNAUTHENTICATED", message, retryable=False)

    def _no_model(self, model: str, said: str) -> ModelError:
        message = f"{self.endpoint} has no model {model!r}, or the address is wrong: check both{said}"
        return ModelError("MODEL_NOT_FOUND", message, retryable=False)

    def _not_found(self, answer: HttpResponse, model: str, words: str, said: str) -> ModelError:
        """Return no such path, or no such model: only the words can tell."""
        is_page = web_page.is_page(answer.body.decode(errors="replace"))
        named = rf"(?<!\w){re.escape(model.lower())}(?!\w)"
        is_about_model = _ABOUT_MODELS.search(words) or re.search(named, words)
        is_about_path = answer.status == HTTPStatus.METHOD_NOT_ALLOWED or _NO_PATH.search(words)
        if not is_page and (is_about_model or not is_about_path):
            return self._no_model(model, said)
        setting = self.address.setting
        mend = f"correct {setting}, which is the address without /{self.path}"
        if not self.path.startswith("v1/") and (with_version := self.address.with_version):
            mend = f"add /v1 to {setting}, as in {with_version}, or correct it"
        problem = f"{self.endpoint} has nothing at {self.address.shown(self.path)}"
        return AddressError("MODEL_NOT_FOUND", problem, mend, said)

    def _redirected(self, answer: HttpResponse, said: str) -> ModelError:
        """Return the failure of a redirect, which is not followed: the key would go to another host."""
        setting = self.address.setting
        location = urljoin(self.address.url(self.path), answer.headers["Location"]).partition("#")[0]
        try:
            target = Address.parse(location)
            new = Address.parse(location, endings=(self.path,))
        except SettingsError:
            target = new = self.address
        if new.base == self.address.base:
            mend = f"correct {setting}"
        elif new.path != target.path:
            mend = f"set {setting} to {new.base}"
        else:
            mend = f"set {setting} to that if it is the API, and no page to log in on"
        problem = f"{self.endpoint} redirects to {target.base}, with status {answer.status}"
        return AddressError("REQUEST_REJECTED", problem, mend, said)


def _status_in(error: object, words: str) -> int:
    """Return the status that an error would have had."""
    match error:
        case {"code": int(code)} if HTTPStatus.BAD_REQUEST <= code < 600:  # noqa: PLR2004  no status beyond
            return code
        case {"code": str(word)} | {"type": str(word)} if word in _STATUSES:
            return _STATUSES[word]
    if _NOT_THERE.search(words):
        return HTTPStatus.NOT_FOUND
    if token_limits.PER_TIME.search(words):
        return HTTPStatus.TOO_MANY_REQUESTS
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _believed_wait_s(answer: HttpResponse) -> float | None:
    wait_s = waits.requested_wait_s(answer.headers, answer.body)
    return None if wait_s is None else min(wait_s, MAX_RETRY_AFTER_S)


def _failed(
    reason: str, message: str, used: tuple[int, int] = (0, 0), *, retryable: bool = True
) -> ModelError:
    return ModelError(reason, message, retryable=retryable, input_tokens=used[0], output_tokens=used[1])


def _explanation(body: Any) -> str:
    """Return the sentence for people in an error body of any common shape; empty: none found."""
    match body:
        case str():
            return body
        case [first, *_] | {"errors": [first, *_]}:
            return _explanation(first)
        case {"error": error} if error:
            return _explanation(error)
        case {"message": str(message), "metadata": {"raw": str(raw)}}:
            return f"{message}: {_explanation(error_body.opened(raw)) or raw}"
        case {"message": str(message), "code": str(code)}:
            return f"{message} ({code})"
        case {"message": str(text)} | {"detail": str(text)}:
            return text
        case _:
            return ""
