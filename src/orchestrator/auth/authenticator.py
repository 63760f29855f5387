"""From the credentials of a request to a Caller."""

from collections.abc import Sequence
from typing import Final

from orchestrator.auth import tokens
from orchestrator.auth.caller import ANYONE, Caller
from orchestrator.auth.oidc import OidcIssuer
from orchestrator.auth.token_store import TokenStore
from orchestrator.core.quota import NO_QUOTA, Quota
from orchestrator.errors import UnauthenticatedError

_SCHEME: Final = "bearer"
_MEND: Final = "send `authorization: Bearer …` with a token of this service"


class Authenticator:
    """Takes tokens of a store, JWTs of an issuer, or both; with neither it requires no credentials."""

    def __init__(self, store: TokenStore | None = None, issuer: OidcIssuer | None = None) -> None:
        self._store = store
        self._issuer = issuer

    @property
    def is_required(self) -> bool:
        """Whether a caller needs credentials."""
        return self._store is not None or self._issuer is not None

    def quota(self, tenant: str) -> Quota:
        """Return what a tenant may use, as the file of tokens says now."""
        return self._store.quota(tenant) if self._store else NO_QUOTA

    async def authenticate(self, credentials: Sequence[str]) -> Caller:
        """Return who calls by the values of `authorization`.

        Raise UnauthenticatedError, or UnavailableError where they cannot be checked for now.
        """
        if not self.is_required:
            return ANYONE
        if not credentials:
            raise UnauthenticatedError("TOKEN_MISSING", f"there are no credentials: {_MEND}")
        if len(credentials) > 1:
            raise UnauthenticatedError("TOKEN_INVALID", f"there are {len(credentials)} credentials: send one")
        scheme, _, text = credentials[0].strip().partition(" ")
        text = text.strip()
        if scheme.lower() != _SCHEME or not text or not text.isascii():
            raise UnauthenticatedError("TOKEN_INVALID", f"the credentials are no bearer token: {_MEND}")
        if self._issuer and (self._store is None or not text.startswith(tokens.PREFIX)):
            return await self._issuer.authenticate(text)
        assert self._store  # noqa: S101  there is one of the two
        return self._store.authenticate(text)


NO_AUTHENTICATION: Final = Authenticator()
"""Anyone who reaches the service may use it."""
