"""Callers of a service that asks for tokens: a stub for each tenant and role."""

from pathlib import Path
from typing import Any

import grpc.aio

from orchestrator.auth import token_file, tokens
from orchestrator.auth.authenticator import Authenticator
from orchestrator.auth.caller import Role
from orchestrator.auth.token_file import Token
from orchestrator.auth.token_store import TokenStore
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub


class Callers:
    """Makes tokens, and stubs that send them."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tokens.toml"
        self._texts: dict[tuple[str, Role], str] = {}
        for tenant in ("acme", "initech", "hooli"):
            for role in Role:
                text = tokens.generate()
                self._texts[tenant, role] = text
                token_file.add(self.file, Token(f"{tenant}-{role.value}", tenant, role, tokens.digest(text)))

    def token(self, tenant: str, role: Role = Role.WRITE) -> str:
        return self._texts[tenant, role]

    def authenticator(self) -> Authenticator:
        return Authenticator(TokenStore.open(self.file))

    def stub(self, channel: grpc.aio.Channel, tenant: str, role: Role = Role.WRITE) -> OrchestratorStub:
        return stub_with(channel, self.token(tenant, role))


def stub_with(channel: grpc.aio.Channel, token: str) -> OrchestratorStub:
    return OrchestratorStub(_Authorized(channel, (("authorization", f"Bearer {token}"),)))  # type: ignore[arg-type]


class _Authorized:
    """A channel whose calls send metadata."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        return self._with_metadata(self._channel.unary_unary(*arguments, **named))

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._with_metadata(self._channel.unary_stream(*arguments, **named))

    def _with_metadata(self, call: Any) -> Any:
        return lambda request: call(request, metadata=self._metadata)
