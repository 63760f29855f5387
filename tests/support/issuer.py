"""A real issuer of JWTs on loopback: discovery, keys made in the test, tokens signed with them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "orchestrator"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_ALGORITHMS = {
    "RS": jwt.algorithms.RSAAlgorithm,
    "ES": jwt.algorithms.ECAlgorithm,
    "Ed": jwt.algorithms.OKPAlgorithm,
}


class Issuer:
    """Publishes the public half of `keys`; a test may change them and what is answered."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: dict[str, tuple[str, PrivateKey]] = {"first": ("RS256", rsa_key())}
        """By kid: the algorithm, and the private key."""
        self.fetches = 0
        self.claims_to_be = ""
        """What discovery calls the issuer; empty: what it is."""
        self.extra_keys: list[dict[str, Any]] = []
        self.is_down = False

    def sign(self, kid: str = "first", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign a JWT that is valid but for what `claims` replace; None leaves one out."""
        algorithm, key = self.keys[kid]
        return jwt.encode(self.claims(**claims), key, algorithm, {"kid": kid, **(headers or {})})

    def claims(self, **changes: Any) -> dict[str, Any]:
        now_s = time.time()
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ann@example.com",
            "exp": now_s + 300,
            "nbf": now_s,
            "tenant": "acme",
            "role": "write",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def jwks(self) -> dict[str, Any]:
        published = [
            _ALGORITHMS[algorithm[:2]].to_jwk(key.public_key(), as_dict=True)
            | {"kid": kid, "use": "sig", "alg": algorithm}
            for kid, (algorithm, key) in self.keys.items()
        ]
        return {"keys": [*published, *self.extra_keys]}


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    issuer = Issuer()

    async def discovery(_: web.Request) -> web.Response:
        if issuer.is_down:
            return web.Response(status=503)
        return web.json_response(
            {"issuer": issuer.claims_to_be or issuer.url, "jwks_uri": f"{issuer.url}/keys"}
        )

    async def keys(_: web.Request) -> web.Response:
        issuer.fetches += 1
        return web.json_response(issuer.jwks())

    app = web.Application()
    app.add_routes([web.get("/.well-known/openid-configuration", discovery), web.get("/keys", keys)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield issuer
    finally:
        await runner.cleanup()
