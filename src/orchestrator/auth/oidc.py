"""JWTs of an OpenID Connect issuer: checked with the keys that it publishes."""

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import jwt

from orchestrator.auth.caller import TENANT, Caller, Role
from orchestrator.errors import SettingsError, UnauthenticatedError, UnavailableError
from orchestrator.models.http import trust
from orchestrator.settings import is_loopback

_LOGGER: Final = logging.getLogger(__name__)

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""Signatures by a private key only: what is published must not be able to make one."""

_REFRESH_S: Final = 60.0
"""How often, at most, the keys are fetched because one is not known."""
_RETRY_S: Final = 5.0
"""The same while there are none at all."""
_MAX_AGE_S: Final = 3600.0
"""After how long the keys are fetched again, so that one that the issuer has withdrawn goes."""
_CACHED_S: Final = 60.0
"""How long a JWT that was found valid is not looked at again."""
_MAX_CACHED: Final = 4096
_LEEWAY_S: Final = 5.0
"""How far the issuer's clock may be from ours."""
_TIMEOUT_S: Final = 5.0
_MAX_TOKEN_BYTES: Final = 16 * 1024
_MAX_DOCUMENT_BYTES: Final = 1024 * 1024
_MAX_NAME: Final = 200
_STRONGEST_FIRST: Final = (Role.ADMIN, Role.WRITE, Role.READ, Role.METRICS)


class _Valid(NamedTuple):
    caller: Caller
    until_s: float


class OidcIssuer:
    """Authenticates JWTs of one issuer, for one audience."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        tenant_claim: str,
        role_claim: str,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raise SettingsError for an issuer whose keys could be replaced on their way."""
        self.issuer = issuer
        _check_url(issuer, "the issuer")
        self._audience = audience
        self._tenant_claim = tenant_claim
        self._role_claim = role_claim
        self._clock_s = clock_s
        self._keys: dict[str, Mapping[str, Any]] = {}
        """JSON Web Keys by `kid`."""
        self._fetched_s: float | None = None
        self._tried_s: float | None = None
        self._fetching = asyncio.Lock()
        self._valid: OrderedDict[bytes, _Valid] = OrderedDict()

    async def authenticate(self, text: str) -> Caller:
        """Return who calls with a JWT; raise UnauthenticatedError, or UnavailableError without any keys."""
        digest = hashlib.sha256(text.encode()).digest()
        known = self._valid.get(digest)
        if known and self._clock_s() < known.until_s:
            return known.caller
        claims = self._verify(text, await self._key(text))
        caller = self._caller(claims)
        left_s = min(_CACHED_S, claims["exp"] - time.time())
        self._valid[digest] = _Valid(caller, self._clock_s() + left_s)
        while len(self._valid) > _MAX_CACHED:
            self._valid.popitem(last=False)
        return caller

    async def _key(self, text: str) -> jwt.PyJWK:
        """Find the key that signed a JWT, by its `kid` alone: keys and addresses in it are not looked at."""
        if len(text) > _MAX_TOKEN_BYTES:
            raise _invalid(f"the JWT has over {_MAX_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(text)
        except jwt.InvalidTokenError as error:
            raise _invalid(
                f"the credentials are neither a token of this service nor a JWT: {error}"
            ) from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise _invalid("the JWT is not signed with an algorithm that is allowed")
        if not isinstance(kid, str) or not kid:
            raise _invalid("the JWT does not say which key signed it: it has no kid")
        key = await self._find_key(kid)
        if key is None:
            raise _invalid(f"the JWT is signed with a key that {self.issuer} does not publish")
        if key.get("alg", algorithm) != algorithm:
            raise _invalid("the JWT's algorithm is not that of its key")
        try:
            return jwt.PyJWK.from_dict(dict(key), algorithm)
        except jwt.PyJWTError:
            raise _invalid("the JWT's algorithm is none for its key") from None

    def _verify(self, text: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        try:
            return jwt.decode(
                text,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            raise _invalid(f"the JWT is not valid: {error}") from None

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        tenant = _claim(claims, self._tenant_claim)
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise _invalid(f"the JWT's claim {self._tenant_claim!r} names no tenant")
        names = _claim(claims, self._role_claim)
        given = names if isinstance(names, list) else [names]
        role = next((role for role in _STRONGEST_FIRST if role.value in given), None)
        if role is None:
            known = ", ".join(each.value for each in Role)
            raise _invalid(f"the JWT's claim {self._role_claim!r} has none of the roles {known}")
        subject = claims["sub"]
        if len(subject) > _MAX_NAME or not subject.isprintable() or not subject:
            raise _invalid("the JWT's subject is no name")
        return Caller(subject, tenant, role)

    async def _find_key(self, kid: str) -> Mapping[str, Any] | None:
        if kid not in self._keys or self._is_older_than(self._fetched_s, _MAX_AGE_S):
            async with self._fetching:
                await self._fetch_if_due(kid)
        return self._keys.get(kid)

    async def _fetch_if_due(self, kid: str) -> None:
        """Fetch the keys, unless that was done a moment ago; keys that are there outlast a failure."""
        if kid in self._keys and not self._is_older_than(self._fetched_s, _MAX_AGE_S):
            return
        if self._is_older_than(self._tried_s, _REFRESH_S if self._keys else _RETRY_S):
            self._tried_s = self._clock_s()
            try:
                self._keys = await self._fetch()
                self._fetched_s = self._clock_s()
                self._valid.clear()
            except (httpx.HTTPError, ValueError, OSError) as error:
                _LOGGER.warning(
                    "the keys of %s cannot be fetched: %s", self.issuer, str(error) or type(error).__name__
                )
        if not self._keys:
            raise UnavailableError(
                "ISSUER_UNAVAILABLE",
                f"the keys of {self.issuer} cannot be fetched, so no JWT can be checked: try again later",
                retry_after_s=_RETRY_S,
            )

    def _is_older_than(self, time_s: float | None, age_s: float) -> bool:
        return time_s is None or self._clock_s() - time_s >= age_s

    async def _fetch(self) -> dict[str, Mapping[str, Any]]:
        """Fetch the keys by way of the issuer's discovery document; raise ValueError for what is none."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, verify=trust.context()) as client:
            discovery = await _get(client, f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            if discovery.get("issuer") != self.issuer:
                raise ValueError(f"its discovery document is that of {discovery.get('issuer')!r}")
            address = discovery.get("jwks_uri")
            if not isinstance(address, str):
                raise ValueError("its discovery document has no jwks_uri")  # noqa: TRY004  it is foreign data
            try:
                _check_url(address, "its jwks_uri")
            except SettingsError as error:
                raise ValueError(str(error)) from None
            keys = (await _get(client, address)).get("keys")
        if not isinstance(keys, list):
            raise ValueError("its jwks_uri answers without keys")  # noqa: TRY004  it is foreign data
        return {
            key["kid"]: key
            for key in keys
            if isinstance(key, dict) and isinstance(key.get("kid"), str) and _can_verify(key)
        }


async def _get(client: httpx.AsyncClient, url: str) -> Mapping[str, Any]:
    async with client.stream("GET", url, headers={"accept": "application/json"}) as response:
        response.raise_for_status()
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > _MAX_DOCUMENT_BYTES:
                raise ValueError(f"{url} answers with over {_MAX_DOCUMENT_BYTES} bytes")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError(f"{url} answers with no JSON object")  # noqa: TRY004  it is foreign data
    return document


def _can_verify(key: Mapping[str, Any]) -> bool:
    return key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by a path with dots into one, as in `realm_access.roles`."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_url(url: str, what: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if not host or parts.scheme not in ("https", "http") or parts.query or parts.fragment or parts.username:
        raise SettingsError(f"{what} is {url[:200]!r}: it must be an address as in https://id.example.com")
    if parts.scheme == "http" and not is_loopback(host):
        raise SettingsError(
            f"{what} is {url[:200]!r}: it must begin with https://, or its keys could be forged"
        )


def _invalid(message: str) -> UnauthenticatedError:
    return UnauthenticatedError("TOKEN_INVALID", message)
