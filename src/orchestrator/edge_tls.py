"""TLS at the REST edge: what `envoy.yaml` gets where the service has a certificate.

Envoy reads the certificate's own files, named in a folder that this process makes. It reads them again when a
file is moved into that folder, which this process does once they are renewed and fit together.
"""

import json
from pathlib import Path
from typing import Any, Final

from orchestrator.tls import CertificateFiles

_TYPES: Final = "type.googleapis.com/envoy.extensions"
_CERTIFICATE: Final = "certificate"
_CLIENT_CA: Final = "client_ca"
_CONNECT_TIMEOUT: Final = "10s"
"""For a client's handshake."""
_PLAIN_TEXT: Final = json.dumps(
    {"code": 3, "message": "this port speaks TLS alone: ask with https://", "details": []}
)


def add_tls(listener: Any, chain: Any, files: CertificateFiles, folder: Path) -> None:
    """Have a listener speak TLS in this filter chain, and tell those who do not to do so."""
    listener["listener_filters"] = [
        {
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {"@type": f"{_TYPES}.filters.listener.tls_inspector.v3.TlsInspector"},
        }
    ]
    common: dict[str, Any] = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [_secret_source(_CERTIFICATE, folder)],
    }
    context: dict[str, Any] = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common,
    }
    if files.client_ca:
        common["validation_context_sds_secret_config"] = _secret_source(_CLIENT_CA, folder)
        context["require_client_certificate"] = True
    chain |= {
        "filter_chain_match": {"transport_protocol": "tls"},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
        "transport_socket_connect_timeout": _CONNECT_TIMEOUT,
    }
    refusal = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 400, "body": {"inline_string": _PLAIN_TEXT}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            },
            {"header": {"key": "connection", "value": "close"}},
        ],
    }
    plain = _http("plain_text", [refusal])
    listener["filter_chains"].append(
        {"name": "plain_text", "filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [plain]}
    )


def readiness_listener(ready_filter: Any, folder: Path) -> Any:
    """Build a listener for this process, which has no certificate to show, that answers the filter's path."""
    nothing = {"match": {"prefix": "/"}, "direct_response": {"status": 404}}
    return {
        "name": "readiness",
        "address": {"pipe": {"path": str(readiness_socket(folder)), "mode": 0o600}},
        "filter_chains": [{"filters": [_http("readiness", [nothing], ready_filter)]}],
    }


def readiness_socket(folder: Path) -> Path:
    """Where `readiness_listener` listens."""
    return folder / "ready.sock"


def write_secrets(files: CertificateFiles, folder: Path) -> None:
    """Write down where Envoy finds the certificate, and the clients' authority where there is one."""
    watched = {"watched_directory": {"path": str(folder)}}
    _write_secret(
        folder,
        _CERTIFICATE,
        {
            "tls_certificate": {
                "certificate_chain": _data_source(files.certificate),
                "private_key": _data_source(files.key),
                **watched,
            }
        },
    )
    if files.client_ca:
        trusted = {"trusted_ca": _data_source(files.client_ca), **watched}
        _write_secret(folder, _CLIENT_CA, {"validation_context": trusted})


def have_read_again(folder: Path) -> None:
    """Have Envoy read the certificate again."""
    moved = folder / "renewed.new"
    moved.touch()
    moved.replace(folder / "renewed")


def _secret_source(name: str, folder: Path) -> Any:
    return {"name": name, "sds_config": {"path_config_source": {"path": str(folder / f"{name}.json")}}}


def _write_secret(folder: Path, name: str, secret: Any) -> None:
    resource = {"@type": f"{_TYPES}.transport_sockets.tls.v3.Secret", "name": name, **secret}
    (folder / f"{name}.json").write_text(json.dumps({"resources": [resource]}))


def _data_source(file: Path) -> Any:
    return {"filename": str(file.absolute())}


def _http(name: str, routes: list[Any], *filters: Any) -> Any:
    """Build a connection manager that answers by itself."""
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "request_headers_timeout": "10s",
            "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "localhost"},
            "http_filters": [*filters, router],
            "route_config": {
                "name": name,
                "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
            },
        },
    }
