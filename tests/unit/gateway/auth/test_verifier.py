"""Tokens that hold, tokens that do not, and why."""

import asyncio
import base64
import json
import time
from typing import Any

import jwt
import pytest

from gateway.auth.jwks import JwksKeys
from gateway.auth.verification_keys import from_jwks, from_pem, from_secret
from gateway.auth.verifier import KeySource, StaticKey, TokenRejected, TrustedIssuer, Verifier
from kaiten.errors import IssuerUnavailable
from kaiten.settings.models import JwksSettings
from tests.unit.gateway.auth.mint import (
    AUDIENCE,
    ISSUER,
    claims,
    jwk,
    jwks,
    private,
    public_pem,
    token,
)

SECRET = "an0ther-l0ng-val.ue-of-67-bytes/for+the~tests_of=all_three_HS_sizes!"
ASYMMETRIC = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
]
ALL_ALGORITHMS = frozenset([*ASYMMETRIC, "HS256", "HS384", "HS512"])
NOW = int(time.time())
HOUR = 3600


def trusted(keys: KeySource, name: str = ISSUER, *algorithms: str) -> TrustedIssuer:
    return TrustedIssuer(name, AUDIENCE, keys, frozenset(algorithms) or ALL_ALGORITHMS)


def verifier(*issuers: TrustedIssuer, leeway_s: int = 10) -> Verifier:
    return Verifier({issuer.name: issuer for issuer in issuers}, leeway_s)


ES256_VERIFIER = verifier(trusted(StaticKey(from_pem(public_pem("ES256")))))


async def fault(token_verifier: Verifier, jws: str) -> str:
    with pytest.raises(TokenRejected) as caught:
        await token_verifier.verify(jws)
    return caught.value.fault


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_token_of_each_algorithm_holds(algorithm: str) -> None:
    ((key,),) = from_jwks(jwks(jwk(algorithm))).values()
    verification = await verifier(trusted(StaticKey(key))).verify(token(algorithm))
    assert (verification.principal.subject, *verification.principal.scopes) == ("alice", "predict")
    assert verification.principal.issuer == ISSUER
    assert verification.token_id == "one"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_token_of_a_shared_secret_holds(algorithm: str) -> None:
    jws = jwt.encode(claims(), SECRET, algorithm=algorithm)
    assert await verifier(trusted(StaticKey(from_secret(SECRET)))).verify(jws)


async def test_algorithm_that_the_issuer_is_not_to_use_is_refused() -> None:
    ((key,),) = from_jwks(jwks(jwk("RS256"))).values()
    ps256_verifier = verifier(trusted(StaticKey(key), ISSUER, "PS256"))
    assert await fault(ps256_verifier, token("RS256")) == "algorithm"
    assert await ps256_verifier.verify(token("PS256"))


async def test_public_key_is_never_taken_for_a_secret() -> None:
    pem = public_pem("RS256")
    # PyJWT refuses to sign by a PEM, so this is done by hand.
    hmac_algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    parts = [{"alg": "HS256", "typ": "JWT"}, claims()]
    signing_input = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    jws = f"{signing_input}.{encoded(hmac_algorithm.sign(signing_input.encode(), pem))}"
    assert await fault(verifier(trusted(StaticKey(from_pem(pem)))), jws) == "algorithm"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "expired": ("ExpiredSignatureError", {"exp": NOW - HOUR}),
    "without an end": ("MissingRequiredClaimError", {"exp": None}),
    "an end that is no number": ("DecodeError", {"exp": "soon"}),
    "an end in words": ("instant", {"exp": str(NOW + HOUR)}),
    "an end before the epoch": ("ExpiredSignatureError", {"exp": -1}),
    "a beginning in words": ("instant", {"nbf": "0"}),
    "a beginning that is true": ("instant", {"iat": True}),
    "an end beyond what numbers hold": ("instant", {"exp": 2**53}),
    "not yet": ("ImmatureSignatureError", {"nbf": NOW + HOUR}),
    "made in the future": ("ImmatureSignatureError", {"iat": NOW + HOUR}),
    "for another audience": ("InvalidAudienceError", {"aud": "others"}),
    "for no audience": ("MissingRequiredClaimError", {"aud": None}),
    "of another issuer": ("unknown_issuer", {"iss": "https://evil.example/"}),
    "of no issuer": ("unknown_issuer", {"iss": None}),
    "of a list of issuers": ("unknown_issuer", {"iss": [ISSUER]}),
    "of nobody": ("MissingRequiredClaimError", {"sub": None}),
    "of an empty subject": ("subject", {"sub": ""}),
    "of a long subject": ("subject", {"sub": "a" * 257}),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_claims_that_do_not_hold(case: str) -> None:
    expected, changes = REFUSED[case]
    payload = claims(**changes)
    if isinstance(changes.get("iss"), list):
        # PyJWT would not encode it.
        head = encoded(json.dumps({"alg": "ES256", "kid": "1"}).encode())
        jws = f"{head}.{encoded(json.dumps(payload).encode())}.AAAA"
    else:
        jws = jwt.encode(payload, private("ES256"), algorithm="ES256")
    assert await fault(ES256_VERIFIER, jws) == expected


@pytest.mark.parametrize("claim", ["exp", "iat"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400])
async def test_numbers_beyond_time_are_refused(claim: str, value: float) -> None:
    jws = jwt.encode(claims(**{claim: value}), private("ES256"), algorithm="ES256")
    with pytest.raises(TokenRejected):
        await ES256_VERIFIER.verify(jws)


HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "critical": ("critical_header", {"crit": ["exp"], "exp": 1}),
    "jku": ("key_reference", {"jku": "https://evil.example/jwks"}),
    "x5u": ("key_reference", {"x5u": "https://evil.example/cert"}),
    "x5c": ("key_reference", {"x5c": ["AAAA"]}),
    "jwk": ("key_reference", {"jwk": {"kty": "oct", "k": "AAAA"}}),
    "kid with a path": ("key_id", {"kid": "../../dev/null\x00"}),
    "kid that climbs": ("key_id", {"kid": "../../dev/null"}),
    "kid with a query": ("key_id", {"kid": "1' OR '1'='1"}),
    "long kid": ("key_id", {"kid": "a" * 300}),
    "another type": ("type", {"typ": "JWE"}),
    "no type": ("type", {"typ": ["JWT"]}),
}


@pytest.mark.parametrize("case", HEADERS)
async def test_headers_that_are_refused_although_the_signature_holds(case: str) -> None:
    expected, headers = HEADERS[case]
    # By hand: PyJWT does not write all of them.
    head = encoded(json.dumps({"alg": "ES256", "typ": "JWT", **headers}).encode())
    signing_input = f"{head}.{encoded(json.dumps(claims()).encode())}"
    key = private("ES256")
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(
        signing_input.encode(), key
    )
    token_fault = await fault(ES256_VERIFIER, f"{signing_input}.{encoded(signature)}")
    # PyJWT itself knows no critical header.
    assert token_fault in {expected, "InvalidTokenError"}


async def test_type_of_access_tokens_is_taken() -> None:
    assert await ES256_VERIFIER.verify(token(headers={"typ": "at+jwt"}))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, 5])
async def test_unsigned_tokens_are_refused(alg: object) -> None:
    head = encoded(json.dumps({"alg": alg, "typ": "JWT"}).encode())
    body = encoded(json.dumps(claims()).encode())
    for signature in ("", "AAAA"):
        with pytest.raises(TokenRejected):
            await ES256_VERIFIER.verify(f"{head}.{body}.{signature}")


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b", "a.b.c", "a.b.c.d.e", "é.é.é", "\x00", "a" * 8193, f"{'[' * 3000}.."],
)
async def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(TokenRejected):
        await ES256_VERIFIER.verify(text)


async def test_signature_by_another_key_is_refused() -> None:
    assert await fault(ES256_VERIFIER, token("ES256#other")) == "InvalidSignatureError"


async def test_each_issuers_keys_are_for_its_own_tokens() -> None:
    first_issuer = trusted(StaticKey(from_pem(public_pem("ES256"))))
    second_issuer = trusted(StaticKey(from_pem(public_pem("EdDSA"))), "https://other.example/")
    token_verifier = verifier(first_issuer, second_issuer)
    assert await token_verifier.verify(token("ES256"))
    assert await token_verifier.verify(token("EdDSA", iss=second_issuer.name))
    assert await fault(token_verifier, token("EdDSA")) == "algorithm"
    assert await fault(token_verifier, token("ES256", iss=second_issuer.name)) == "algorithm"


async def test_one_bad_issuer_blocks_no_other() -> None:
    async def away(url: str) -> bytes:
        raise ConnectionError(url)

    unavailable_issuer = trusted(
        JwksKeys("https://other.example/", JwksSettings(), away), "https://other.example/"
    )
    token_verifier = verifier(trusted(StaticKey(from_pem(public_pem("ES256")))), unavailable_issuer)
    with pytest.raises(IssuerUnavailable):
        await token_verifier.verify(token("EdDSA", iss=unavailable_issuer.name))
    assert await token_verifier.verify(token("ES256"))


async def test_key_is_chosen_by_its_id() -> None:
    async def fetch(_: str) -> bytes:
        return jwks(jwk("ES256", kid="1"), jwk("ES256#2", kid="2"))

    token_verifier = verifier(trusted(JwksKeys("https://issuer/", JwksSettings(), fetch)))
    assert await token_verifier.verify(token("ES256", kid="1"))
    assert await token_verifier.verify(token("ES256#2", kid="2"))
    assert await fault(token_verifier, token("ES256#2", kid="1")) == "InvalidSignatureError"
    assert await fault(token_verifier, token("ES256", kid="3")) == "unknown_key"


async def verifier_of_keys(*keys: dict[str, Any]) -> Verifier:
    async def fetch(_: str) -> bytes:
        return jwks(*keys)

    settings = JwksSettings(min_refresh_interval_s=1)
    return verifier(trusted(JwksKeys("https://issuer/", settings, fetch, sleep=asyncio.sleep)))


async def test_token_without_an_id_is_verified_by_any_key_of_its_issuer() -> None:
    token_verifier = await verifier_of_keys(
        jwk("ES256", kid="1"), jwk("ES256#2", kid="2"), jwk("RS256", kid="3")
    )
    for kind in ("ES256", "ES256#2", "RS256"):
        assert await token_verifier.verify(token(kind, kid=None))
    assert await fault(token_verifier, token("ES256#3", kid=None)) == "InvalidSignatureError"
    assert await fault(token_verifier, token("ES384", kid=None)) == "algorithm"


async def test_one_id_for_keys_of_several_algorithms_and_types() -> None:
    token_verifier = await verifier_of_keys(
        jwk("RS256", alg="RS256"), jwk("RS256", alg="PS256"), jwk("ES256")
    )
    for algorithm in ("RS256", "PS256", "ES256"):
        assert await token_verifier.verify(token(algorithm))
    # Each verifies what it is published for, and no more.
    assert await fault(token_verifier, token("RS512")) == "algorithm"
    assert await fault(token_verifier, token("ES256#2")) == "InvalidSignatureError"


async def test_keys_that_are_tried_are_bounded() -> None:
    keys = [jwk(f"ES256#{number}", kid=None) for number in range(17)]
    token_verifier = await verifier_of_keys(*keys)
    assert await token_verifier.verify(token("ES256#15", kid=None))
    assert await fault(token_verifier, token("ES256#16", kid=None)) == "InvalidSignatureError"


@pytest.mark.parametrize("name", [ISSUER.rstrip("/"), f"{ISSUER}/"])
async def test_issuer_that_differs_by_a_slash_is_refused_and_named(name: str) -> None:
    assert await fault(ES256_VERIFIER, token(iss=name)) == "issuer_differs_by_a_slash"


async def test_instants_may_have_fractions() -> None:
    now = time.time()
    assert await ES256_VERIFIER.verify(token(iat=now - 0.5, nbf=now - 0.5, exp=now + 60.5))
    assert await fault(ES256_VERIFIER, token(exp=now - 60.5)) == "ExpiredSignatureError"
    assert await fault(ES256_VERIFIER, token(nbf=now + 60.5)) == "ImmatureSignatureError"


@pytest.mark.parametrize(
    ("scope_claims", "scopes"),
    [
        ({"scope": "predict ops"}, {"predict", "ops"}),
        ({"scope": None, "scp": ["predict", 5]}, {"predict"}),
        ({"scope": None, "scp": "predict ops"}, {"predict", "ops"}),
        ({"scope": None}, set()),
        ({"scope": ["predict"], "scp": ["predict"]}, set()),
        ({"scope": {"predict": True}}, set()),
        ({"scope": True, "scp": "predict"}, set()),
    ],
)
async def test_scopes(scope_claims: dict[str, Any], scopes: set[str]) -> None:
    assert (await ES256_VERIFIER.verify(token(**scope_claims))).principal.scopes == scopes


async def test_leeway_is_forgiven_both_ways() -> None:
    now = int(time.time())
    forgiving = verifier(*ES256_VERIFIER.issuers.values(), leeway_s=300)
    assert await forgiving.verify(token(exp=now - 200, iat=now - HOUR))
    assert await forgiving.verify(token(nbf=now + 200))
    assert await fault(ES256_VERIFIER, token(exp=now - 200)) == "ExpiredSignatureError"
    assert await fault(ES256_VERIFIER, token(nbf=now + 200)) == "ImmatureSignatureError"
