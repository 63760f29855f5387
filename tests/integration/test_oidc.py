"""JWTs against a real issuer on loopback: what is taken, and the classic attacks."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from support.issuer import AUDIENCE, Issuer, issuing, rsa_key

from orchestrator.auth.caller import Caller, Role
from orchestrator.auth.oidc import OidcIssuer
from orchestrator.errors import SettingsError, UnauthenticatedError, UnavailableError


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def oidc(issuer: Issuer, clock: Clock) -> OidcIssuer:
    return OidcIssuer(issuer.url, AUDIENCE, tenant_claim="tenant", role_claim="role", clock_s=clock)


async def rejection(oidc: OidcIssuer, text: str) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        await oidc.authenticate(text)
    assert caught.value.reason == "TOKEN_INVALID"
    assert text not in str(caught.value)
    return str(caught.value)


def encode(
    header: dict[str, Any], claims: dict[str, Any], signature: bytes | None = None, *, key: bytes = b""
) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signed = b".".join(parts)
    if signature is None:
        signature = hmac.digest(key, signed, hashlib.sha256)
    return b".".join((signed, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


async def test_a_valid_jwt_says_who_calls(issuer: Issuer, oidc: OidcIssuer) -> None:
    assert await oidc.authenticate(issuer.sign()) == Caller("ann@example.com", "acme", Role.WRITE)
    assert await oidc.authenticate(
        issuer.sign(aud=["other", AUDIENCE], role=["staff", "read", "admin"])
    ) == Caller("ann@example.com", "acme", Role.ADMIN)


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("PS256", rsa_key()),
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=["PS256", "ES256", "EdDSA"],
)
async def test_other_signatures_by_private_keys_are_taken(
    issuer: Issuer, oidc: OidcIssuer, algorithm: str, key: Any
) -> None:
    if algorithm == "PS256":
        issuer.extra_keys = [
            jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "x", "use": "sig"}
        ]
        text = jwt.encode(issuer.claims(), key, algorithm, {"kid": "x"})
    else:
        issuer.keys["x"] = (algorithm, key)
        text = issuer.sign("x")
    assert (await oidc.authenticate(text)).tenant == "acme"


async def test_claims_may_be_nested_or_have_dots_in_their_names(issuer: Issuer) -> None:
    oidc = OidcIssuer(
        issuer.url, AUDIENCE, tenant_claim="https://example.com/tenant", role_claim="realm_access.roles"
    )
    text = issuer.sign(**{"https://example.com/tenant": "initech"}, realm_access={"roles": ["metrics"]})
    assert await oidc.authenticate(text) == Caller("ann@example.com", "initech", Role.METRICS)


async def test_no_signature_at_all_is_rejected(issuer: Issuer, oidc: OidcIssuer) -> None:
    for algorithm in ("none", "None", "NONE", "nOnE", "", None, ["RS256"]):
        text = encode({"alg": algorithm, "typ": "JWT", "kid": "first"}, issuer.claims(), b"")
        await rejection(oidc, text)


async def test_the_public_key_as_a_shared_secret_is_rejected(issuer: Issuer, oidc: OidcIssuer) -> None:
    public = issuer.keys["first"][1].public_key()
    for form in (serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1):
        pem = public.public_bytes(serialization.Encoding.PEM, form)
        text = encode({"alg": "HS256", "kid": "first"}, issuer.claims(), key=pem)
        assert "algorithm" in await rejection(oidc, text)


async def test_a_published_shared_secret_is_no_key(issuer: Issuer, oidc: OidcIssuer) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("=")
    issuer.extra_keys = [{"kty": "oct", "kid": "secret", "k": secret, "alg": "HS256"}]
    await rejection(oidc, encode({"alg": "HS256", "kid": "secret"}, issuer.claims(), key=b"s" * 32))


async def test_a_key_for_encryption_or_another_algorithm_signs_nothing(
    issuer: Issuer, oidc: OidcIssuer
) -> None:
    key = rsa_key()
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    issuer.extra_keys = [jwk | {"kid": "enc", "use": "enc"}]
    await rejection(oidc, jwt.encode(issuer.claims(), key, "RS256", {"kid": "enc"}))
    await rejection(oidc, jwt.encode(issuer.claims(), issuer.keys["first"][1], "RS512", {"kid": "first"}))
    await rejection(
        oidc, jwt.encode(issuer.claims(), ec.generate_private_key(ec.SECP256R1()), "ES256", {"kid": "first"})
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aud": "another"}, "Audience"),
        ({"aud": None}, '"aud"'),
        ({"iss": "https://evil.example.com"}, "issuer"),
        ({"iss": None}, '"iss"'),
        ({"exp": 1.0}, "expired"),
        ({"exp": None}, '"exp"'),
        ({"nbf": 1e11}, "not yet valid"),
        ({"sub": None}, '"sub"'),
        ({"sub": "ann\nbob"}, "subject"),
        ({"tenant": None}, "names no tenant"),
        ({"tenant": ""}, "names no tenant"),
        ({"tenant": ["acme", "initech"]}, "names no tenant"),
        ({"tenant": "../acme"}, "names no tenant"),
        ({"role": None}, "none of the roles"),
        ({"role": "root"}, "none of the roles"),
        ({"role": {"admin": True}}, "none of the roles"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_wrong_claim_is_rejected(
    issuer: Issuer, oidc: OidcIssuer, changes: dict[str, Any], words: str
) -> None:
    assert words in await rejection(oidc, issuer.sign(**changes))


async def test_a_jwt_that_has_just_expired_is_rejected(issuer: Issuer, oidc: OidcIssuer) -> None:
    assert "expired" in await rejection(oidc, issuer.sign(exp=time.time() - 10))


async def test_a_changed_jwt_is_rejected(issuer: Issuer, oidc: OidcIssuer) -> None:
    header, _, signature = issuer.sign().split(".")
    claims = base64.urlsafe_b64encode(json.dumps(issuer.claims(role="admin")).encode()).decode().rstrip("=")
    await rejection(oidc, f"{header}.{claims}.{signature}")
    await rejection(oidc, f"{header}.{claims}.")


async def test_only_published_keys_count_whatever_the_jwt_brings(issuer: Issuer, oidc: OidcIssuer) -> None:
    key = rsa_key()
    own = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "mine"}
    for headers in (
        {"kid": "first"},
        {"kid": "mine", "jwk": own},
        {"kid": "mine", "jku": f"{issuer.url}/evil"},
        {"kid": "mine", "x5u": f"{issuer.url}/evil"},
        {"kid": "../../../../dev/null"},
        {"kid": "' UNION SELECT 'x"},
        {"kid": f"{issuer.url}/evil"},
    ):
        await rejection(oidc, jwt.encode(issuer.claims(), key, "RS256", headers))
    assert "no kid" in await rejection(oidc, jwt.encode(issuer.claims(), issuer.keys["first"][1], "RS256"))
    await rejection(oidc, encode({"alg": "HS256", "kid": "../../../../dev/null"}, issuer.claims(), key=b""))


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c", "..", "é.é.é", "x" * 20_000])
async def test_what_is_no_jwt_is_rejected(oidc: OidcIssuer, text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        await oidc.authenticate(text)


async def test_a_new_key_is_found_and_unknown_ones_are_asked_for_once_a_minute(
    issuer: Issuer, oidc: OidcIssuer, clock: Clock
) -> None:
    await oidc.authenticate(issuer.sign())
    issuer.keys["second"] = ("RS256", rsa_key())
    text = issuer.sign("second")
    for _ in range(5):
        assert "does not publish" in await rejection(oidc, text)
    assert issuer.fetches == 1
    clock.now_s += 60
    await oidc.authenticate(text)
    for number in range(20):
        await rejection(oidc, jwt.encode(issuer.claims(), rsa_key(), "RS256", {"kid": f"flood-{number}"}))
    assert issuer.fetches == 2


async def test_a_withdrawn_key_is_taken_for_an_hour_at_most(
    issuer: Issuer, oidc: OidcIssuer, clock: Clock
) -> None:
    text = issuer.sign()
    await oidc.authenticate(text)
    issuer.keys = {"second": ("RS256", rsa_key())}
    clock.now_s += 3600
    assert "does not publish" in await rejection(oidc, text)


async def test_known_keys_outlast_an_issuer_that_is_down(
    issuer: Issuer, oidc: OidcIssuer, clock: Clock
) -> None:
    await oidc.authenticate(issuer.sign())
    issuer.is_down = True
    clock.now_s += 3600
    await oidc.authenticate(issuer.sign())


async def test_without_any_keys_the_caller_is_to_try_again(
    issuer: Issuer, oidc: OidcIssuer, clock: Clock
) -> None:
    issuer.is_down = True
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        await oidc.authenticate(issuer.sign())
    issuer.is_down = False
    clock.now_s += 5
    await oidc.authenticate(issuer.sign())


async def test_keys_of_another_issuer_are_not_taken(issuer: Issuer, oidc: OidcIssuer) -> None:
    issuer.claims_to_be = "https://evil.example.com"
    with pytest.raises(UnavailableError):
        await oidc.authenticate(issuer.sign())


@pytest.mark.parametrize(
    "url", ["http://id.example.com", "id.example.com", "", "ftp://127.0.0.1", "https://a:b@id.example.com"]
)
def test_an_issuer_whose_keys_could_be_forged_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="the issuer is"):
        OidcIssuer(url, AUDIENCE, tenant_claim="tenant", role_claim="role")
