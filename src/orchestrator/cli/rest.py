"""The REST edge as `run` uses it: through Envoy, as any other client would."""

import json
from http import HTTPStatus
from typing import Any, Final

import grpc
import httpx
from google.protobuf import json_format

from orchestrator.cli import tls
from orchestrator.cli.exit_codes import NoServiceError
from orchestrator.client import ServiceError
from orchestrator.settings import Settings, split_address
from orchestrator.v1.orchestrator_pb2 import (
    CreateInstanceRequest,
    CreateInstanceResponse,
    GetServiceInfoResponse,
)

_INFO_TIMEOUT_S: Final = 2.0
_CREATE_TIMEOUT_S: Final = 30.0
_MAX_ATTEMPTS: Final = 3
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def base_url(address: str, settings: Settings) -> str:
    """Build the URL of the edge at `host:port`, which speaks TLS where the service does."""
    host, port = split_address(address, "the address of REST")
    scheme = "https" if settings.tls_ca else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def service_id(address: str, settings: Settings) -> str | None:
    """Fetch the id of the service behind the edge at `host:port`; None where no orchestrator answers."""
    async with _client(address, _INFO_TIMEOUT_S, settings) as client:
        try:
            info = _decode_info(await client.get("/-/info"))
        except httpx.HTTPError:
            return None
    return (info and info.service_id) or None


def _decode_info(response: httpx.Response) -> GetServiceInfoResponse | None:
    """Decode the answer of `GET /-/info`; None where it is no orchestrator's."""
    if response.status_code != HTTPStatus.OK:
        return None
    try:
        return json_format.Parse(response.content, GetServiceInfoResponse(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError):
        return None


async def http_error(address: str) -> NoServiceError | None:
    """Return the error for a gRPC address where HTTP/1 answers; None where it does not."""
    async with _client(address, _INFO_TIMEOUT_S, Settings()) as client:
        try:
            response = await client.get("/-/info")
        except httpx.HTTPError:
            return None
    problem = f"{address} answers {response.http_version} but no gRPC"
    info = _decode_info(response)
    if not info or not info.grpc_address:
        return NoServiceError(f"{problem}: name with --address where the service listens for gRPC")
    return NoServiceError(
        f"{problem}: it is where an orchestrator has its REST; for gRPC use --address {info.grpc_address}"
    )


async def create(address: str, request: CreateInstanceRequest, settings: Settings) -> CreateInstanceResponse:
    """`POST /`. The request must carry a request_id: it is sent again when the connection breaks."""
    body = json_format.MessageToDict(request)
    async with _client(address, _CREATE_TIMEOUT_S, settings) as client:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                response = await client.post("/", json=body)
                break
            except httpx.TransportError as error:
                if attempt == _MAX_ATTEMPTS:
                    problem = str(error) or type(error).__name__
                    raise NoServiceError(f"REST does not answer at {address}: {problem}") from None
    if response.status_code != HTTPStatus.OK:
        raise _service_error(response)
    try:
        return json_format.Parse(response.content, CreateInstanceResponse(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError):
        raise NoServiceError(f"what answers at {address} is no orchestrator") from None


def _client(address: str, timeout_s: float, settings: Settings) -> httpx.AsyncClient:
    token = settings.client_token
    # Nothing of the environment: a proxy would answer for 127.0.0.1.
    return httpx.AsyncClient(
        base_url=base_url(address, settings),
        headers={"authorization": f"Bearer {token}"} if token else {},
        timeout=timeout_s,
        trust_env=False,
        verify=tls.context(settings) if settings.tls_ca else True,
    )


def _service_error(response: httpx.Response) -> ServiceError:
    """Decode the body `{code, message, details}` of an error."""
    try:
        status: Any = response.json()
        code = _CODES[status["code"]]
        message = str(status["message"])
        details = [detail for detail in status.get("details", []) if "reason" in detail]
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError):
        return ServiceError(
            grpc.StatusCode.UNKNOWN, f"REST answers {response.status_code}: {response.text[:200]}"
        )
    info = details[0] if details else {}
    return ServiceError(code, message, reason=info.get("reason", ""), metadata=info.get("metadata"))
