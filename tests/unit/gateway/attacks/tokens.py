"""Attacks by what a token is and says."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.auth.verification_keys import Key
from tests.unit.gateway.attacks.attack import (
    AsksForNoScope,
    Attack,
    Change,
    library,
    no_claim_check,
    no_header_check,
    no_option,
    not_required,
    off,
    trusted,
)
from tests.unit.gateway.attacks.stand import LOGIN, OWN, RSA, Defences, Sent
from tests.unit.gateway.auth import mint
from tests.unit.gateway.auth.mint import Json, jwk, private, public_pem
from tests.unit.gateway.auth.test_verifier import ALL_ALGORITHMS, encoded
from tests.unit.gateway.house import CANARY, SECRET

UNAUTHENTICATED, FORBIDDEN = (401, "unauthenticated"), (403, "forbidden")
HOUR, DAY = 3600, 86_400
OTHER_SECRET = "fedcba9876543210" * 4
NO_SIGNATURE = no_option("verify_signature")
NO_CLOCK = off(clock=lambda _: 0.0)
NO_SCOPE = off(authenticator=AsksForNoScope)


def claims(**changes: object) -> Json:
    return mint.claims(**{"iss": OWN, "sub": CANARY, **changes})


def by_secret(header: Json, payload: Json, secret: bytes = SECRET.encode()) -> str:
    """Return a token by hand: PyJWT would not write most of these."""
    words = ".".join(encoded(json.dumps(part).encode()) for part in (header, payload))
    return f"{words}.{encoded(hmac.digest(secret, words.encode(), hashlib.sha256))}"


def own_token(header: Json | None = None, **changes: object) -> str:
    return by_secret({"alg": "HS256", "typ": "JWT", **(header or {})}, claims(**changes))


def issuer_token(kind: str, kid: str | None = "1", **changes: Any) -> str:  # noqa: ANN401
    """Return a token of another issuer's, by its private key."""
    return mint.token(kind, kid=kid, **{"sub": CANARY, **changes})


def request_with(token: str, **changes: object) -> Sent:
    headers = [("Content-Type", "application/json"), ("Authorization", f"Bearer {token}")]
    return replace(Sent(headers=[*headers]), **changes)  # type: ignore[arg-type]


def token_attack(token: Callable[[], str], *without: Change) -> Attack:
    return Attack(lambda: request_with(token()), UNAUTHENTICATED, without)


def unsigned(alg: str, end: str = "") -> Attack:
    def token() -> str:
        words = ({"alg": alg, "typ": "JWT"}, claims())
        return ".".join(encoded(json.dumps(part).encode()) for part in words) + f".{end}"

    key = trusted(OWN, key=Key(None, frozenset({alg})), algorithms=frozenset({alg}))
    return token_attack(token, no_header_check("unsigned"), key, NO_SIGNATURE)


def signature(change: Callable[[str], str]) -> Attack:
    return token_attack(lambda: change(own_token()), NO_SIGNATURE)


def promote(token: str) -> str:
    head, _, end = token.split(".")
    payload = claims(scope="predict ops", sub=f"{CANARY}-admin")
    return f"{head}.{encoded(json.dumps(payload).encode())}.{end}"


def key_confusion(public: Callable[[], bytes], *guards: Change) -> Attack:
    """Return the attack by a public key that is taken for a shared secret."""
    head = {"alg": "HS256", "typ": "JWT"}

    def as_secret(defences: Defences) -> Defences:
        key = Key(public(), frozenset({"HS256"}))
        return trusted(RSA, key=key, algorithms=ALL_ALGORITHMS)(defences)

    return token_attack(lambda: by_secret(head, claims(iss=RSA), public()), as_secret, *guards)


def der() -> bytes:
    key = private("RS256").public_key()
    content: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return content


def modulus() -> bytes:
    content: str = jwk("RS256")["n"]
    return content.encode()


def header(check: str, changes: Json, *guards: Change) -> Attack:
    return token_attack(lambda: own_token(changes), no_header_check(check), *guards)


def claim(change: Json, *without: Change) -> Attack:
    return token_attack(lambda: own_token(**change), *without)


def scope(value: object) -> Attack:
    return Attack(lambda: request_with(own_token(scope=value)), FORBIDDEN, (NO_SCOPE,))


def key_of_the_attackers() -> str:
    public = jwk("ES256#attacker", kid="1")
    return mint.token("ES256#attacker", {"jwk": public}, sub=CANARY)


NOW = int(time.time())
NO_KID_GUARD = library("jwt.api_jws.PyJWS._validate_kid", lambda *_: None)
NO_CRIT_GUARD = library("jwt.api_jws.PyJWS._validate_crit", lambda *_: None)
# It knows a public key by its looks.
NO_LOOK_AT_THE_KEY = library("jwt.algorithms.HMACAlgorithm.prepare_key", lambda _, key: key)

SIGNATURES: Mapping[str, Attack] = {
    **{f"alg {alg}": unsigned(alg) for alg in ("none", "None", "NONE", "nOnE")},
    "alg none with a signature": unsigned("none", "AAAA"),
    "no signature": signature(lambda token: token.rpartition(".")[0] + "."),
    "another's signature": signature(
        lambda token: token.rpartition(".")[0] + "." + own_token(sub="bob").rpartition(".")[2]
    ),
    "claims changed under a signature": signature(promote),
    "another secret": token_attack(
        lambda: jwt.encode(claims(), OTHER_SECRET, algorithm="HS256"), NO_SIGNATURE
    ),
    "a signature of zeros": token_attack(
        lambda: issuer_token("ES256").rpartition(".")[0] + "." + encoded(bytes(64)), NO_SIGNATURE
    ),
    "a public key's PEM as a secret": key_confusion(
        lambda: public_pem("RS256"), NO_LOOK_AT_THE_KEY
    ),
    "a public key's DER as a secret": key_confusion(der, NO_LOOK_AT_THE_KEY),
    "a public key's JWK as a secret": key_confusion(
        lambda: json.dumps(jwk("RS256")).encode(), NO_LOOK_AT_THE_KEY
    ),
    "a public key's modulus as a secret": key_confusion(modulus),
    "ES256 for an issuer of RSA": token_attack(
        lambda: issuer_token("ES256", iss=RSA), trusted(RSA, like=LOGIN)
    ),
    "RS256 where only PS256 is allowed": token_attack(
        lambda: issuer_token("RS256", iss=RSA), trusted(RSA, algorithms=ALL_ALGORITHMS)
    ),
    "HS512 where HS256 is pinned": token_attack(
        lambda: jwt.encode(claims(), SECRET, algorithm="HS512"),
        trusted(OWN, key=Key(SECRET, frozenset({"HS256", "HS512"}))),
    ),
    "another issuer's key": token_attack(
        lambda: issuer_token("ES256", iss=OWN), trusted(OWN, like=LOGIN)
    ),
    "our secret in another's name": token_attack(
        lambda: own_token(iss=LOGIN), trusted(LOGIN, like=OWN)
    ),
    "an id that no published key has": token_attack(
        lambda: issuer_token("ES256", kid="unknown"),
        trusted(LOGIN, key=Key(private("ES256").public_key(), frozenset({"ES256"}))),
    ),
}


KEY_IDS: Mapping[str, object] = {
    "a path": "../../../../dev/null",
    "a query": "1' UNION SELECT 'secret' --",
    "a URL with a query": "https://evil.example/keys?id=1",
    "a NUL byte": "1\x00",
    "a line feed": "1\n",
    "a command": "|whoami",
    "300 characters": "1" * 300,
    "nothing": "",
}
NO_STRINGS: Mapping[str, object] = {"a number": 1, "a list": ["1"], "an object": {"1": 1}}
TYPES = ("logout+jwt", "secevent+jwt", "dpop+jwt", "JWE", ["JWT"])
REFERENCES: Json = {
    "jku": "https://evil.example/jwks.json",
    "x5u": "https://evil.example/chain.pem",
    "x5c": ["AAAA"],
    "jwk": {"kty": "oct", "k": "AAAA"},
}
HEADERS: Mapping[str, Attack] = {
    **{f"kid {name}": header("key_id", {"kid": kid}) for name, kid in KEY_IDS.items()},
    **{
        f"kid {name}": header("key_id", {"kid": kid}, NO_KID_GUARD)
        for name, kid in NO_STRINGS.items()
    },
    **{name: header("key_reference", {name: value}) for name, value in REFERENCES.items()},
    "a key of the attacker's brought along": token_attack(
        key_of_the_attackers, no_header_check("key_reference"), NO_SIGNATURE
    ),
    "crit that PyJWT knows": header("critical_header", {"crit": ["b64"], "b64": True}),
    "crit that nobody knows": header("critical_header", {"crit": ["exp"]}, NO_CRIT_GUARD),
    "b64": header("critical_header", {"b64": True}),
    **{f"typ {kind}": header("type", {"typ": kind}) for kind in TYPES},
}
EXPIRY = (no_option("verify_exp"), NO_CLOCK)
CLAIMS: Mapping[str, Attack] = {
    "expired": claim({"exp": NOW - DAY}, *EXPIRY),
    "expired within another's leeway": claim({"exp": NOW - HOUR}, off(leeway_s=DAY)),
    "without an end": claim({"exp": None}, not_required("exp"), NO_CLOCK),
    "an end in words": claim({"exp": str(NOW + DAY)}, no_claim_check("instant")),
    "an end beyond all time": claim({"exp": 10**300}, no_claim_check("instant")),
    "not yet": claim({"nbf": NOW + DAY}, no_option("verify_nbf")),
    "not yet, in words": claim({"nbf": "0"}, no_claim_check("instant")),
    "made in the future": claim({"iat": NOW + DAY}, no_option("verify_iat")),
    "made before the epoch": claim({"iat": -1}, no_claim_check("instant")),
    "of an unknown issuer": claim(
        {"iss": "https://evil.example/"}, trusted("https://evil.example/", like=OWN)
    ),
    "of an issuer in capitals": claim({"iss": "KAITEN"}, trusted("KAITEN", like=OWN)),
    "for another audience": claim({"aud": "elsewhere"}, no_option("verify_aud")),
    "for an audience that begins like ours": claim(
        {"aud": "kaiten-admin"}, no_option("verify_aud")
    ),
    "for a list of others": claim({"aud": ["a", "b"]}, no_option("verify_aud")),
    "for no audience": claim({"aud": None}, not_required("aud"), no_option("verify_aud")),
    "for an empty list": claim({"aud": []}, no_option("verify_aud")),
    "of nobody": claim({"sub": None}, not_required("sub"), no_claim_check("subject")),
    "of an empty subject": claim({"sub": ""}, no_claim_check("subject")),
    "of a long subject": claim({"sub": CANARY * 100}, no_claim_check("subject")),
    "of a number": claim({"sub": 4711}, no_option("verify_sub"), no_claim_check("subject")),
    "an id that is a number": claim({"jti": 1}, no_option("verify_jti")),
    "a long token": claim(
        {"padding": "x" * 8000}, library("gateway.auth.verifier.MAX_TOKEN_CHARS", 10**6)
    ),
    "no scope": scope(None),
    "scope ops": scope("ops"),
    "scope in capitals": scope("PREDICT"),
    "scope as a list": scope(["predict"]),
    "scope as an object": scope({"predict": "predict"}),
    "scope with a comma": scope("predict,ops"),
    "scope of another model": scope("predict:topic"),
    "scope of a model that begins alike": scope("predict:inten"),
    "metrics by a token for predictions": Attack(
        lambda: request_with(own_token(), method="GET", path="/metrics"), FORBIDDEN, (NO_SCOPE,)
    ),
}
