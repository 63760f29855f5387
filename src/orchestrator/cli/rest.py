"""The REST edge as `run` uses it: through Envoy, as any other client would."""

import json
from http import HTTPStatus
from typing import Any, Final

import grpc
import httpx
from google.protobuf import json_format

from orchestrator.cli.exit_codes import NoServiceError
from orchestrator.client import ServiceError
from orchestrator.settings import split_address
from orchestrator.v1.orchestrator_pb2 import (
    CreateInstanceRequest,
    CreateInstanceResponse,
    GetServiceInfoResponse,
)

_INFO_TIMEOUT_S: Final = 2.0
_CREATE_TIMEOUT_S: Final = 30.0
_TRIES: Final = 3
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def url(address: str) -> str:
    """The URL of the edge at `host:port`."""
    host, port = split_address(address, "the address of REST")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def service_id(address: str) -> str | None:
    """The id of the service that the edge at `host:port` reaches; None: no service of ours answers there."""
    async with _client(address, _INFO_TIMEOUT_S) as client:
        try:
            answer = await client.get("/-/info")
            if answer.status_code != HTTPStatus.OK:
                return None
            info = json_format.Parse(answer.content, GetServiceInfoResponse(), ignore_unknown_fields=True)
        except (httpx.HTTPError, json_format.ParseError, UnicodeDecodeError):
            return None
    return info.service_id or None


async def create(address: str, request: CreateInstanceRequest) -> CreateInstanceResponse:
    """`POST /`. The request must carry a request_id: it is sent again when the connection breaks."""
    body = json_format.MessageToDict(request)
    async with _client(address, _CREATE_TIMEOUT_S) as client:
        for tried in range(1, _TRIES + 1):
            try:
                answer = await client.post("/", json=body)
                break
            except httpx.TransportError as error:
                if tried == _TRIES:
                    problem = str(error) or type(error).__name__
                    raise NoServiceError(f"REST does not answer at {address}: {problem}") from None
    if answer.status_code != HTTPStatus.OK:
        raise _refusal(answer)
    try:
        return json_format.Parse(answer.content, CreateInstanceResponse(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError):
        raise NoServiceError(f"what answers at {address} is no orchestrator") from None


def _client(address: str, timeout_s: float) -> httpx.AsyncClient:
    # Nothing of the environment: a proxy would answer for 127.0.0.1.
    return httpx.AsyncClient(base_url=url(address), timeout=timeout_s, trust_env=False)


def _refusal(answer: httpx.Response) -> ServiceError:
    """Read `{code, message, details}`."""
    try:
        status: Any = answer.json()
        code = _CODES[status["code"]]
        message = str(status["message"])
        details = [detail for detail in status.get("details", []) if "reason" in detail]
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError):
        return ServiceError(
            grpc.StatusCode.UNKNOWN, f"REST answers {answer.status_code}: {answer.text[:200]}"
        )
    info = details[0] if details else {}
    return ServiceError(code, message, reason=info.get("reason", ""), metadata=info.get("metadata"))
