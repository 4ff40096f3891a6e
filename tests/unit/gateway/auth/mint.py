"""Keys and tokens for tests: made here, by PyJWT and cryptography themselves."""

import json
import re
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

ISSUER, AUDIENCE = "https://login.example.org/", "kaiten"
Json = dict[str, Any]
_CURVES: Mapping[str, type[ec.EllipticCurve]] = {
    "ES256": ec.SECP256R1,
    "ES384": ec.SECP384R1,
    "ES512": ec.SECP521R1,
    "ES256K": ec.SECP256K1,
}


def private(kind: str) -> Any:  # noqa: ANN401
    """Return a private key of the kind that an algorithm takes; another one for another ending."""
    return _private(re.sub(r"^[RP]S\d+", "RSA", kind))


@cache
def _private(kind: str) -> Any:  # noqa: ANN401
    name = kind.partition("#")[0]
    if name in _CURVES:
        return ec.generate_private_key(_CURVES[name]())
    if name.startswith("EdDSA"):
        return ed25519.Ed25519PrivateKey.generate()
    if name == "Ed448":
        return ed448.Ed448PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if name == "short" else 2048)


def public_pem(kind: str) -> bytes:
    key = private(kind).public_key()
    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def private_pem(kind: str) -> bytes:
    pem: bytes = private(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def jwk(kind: str, kid: str | None = "1", **changes: Any) -> Json:  # noqa: ANN401
    algorithm = jwt.get_algorithm_by_name(
        {"short": "RS256", "Ed448": "EdDSA"}.get(kind, kind).partition("#")[0]
    )
    members: Json = json.loads(algorithm.to_jwk(private(kind).public_key()))
    members.pop("key_ops", None)
    key_id = {"kid": kid} if kid is not None else {}
    return {
        key: value for key, value in {**members, **key_id, **changes}.items() if value is not None
    }


def jwks(*keys: Json) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**changes: Any) -> Json:  # noqa: ANN401
    now = int(time.time())
    defaults = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "scope": "predict",
        "iat": now, "exp": now + 3600, "jti": "one",
    }  # fmt: skip
    return {key: value for key, value in {**defaults, **changes}.items() if value is not None}


def token(
    kind: str = "ES256",
    headers: Json | None = None,
    kid: str | None = "1",
    **changes: Any,  # noqa: ANN401
) -> str:
    """Return a token signed by the private key of this kind."""
    algorithm = kind.partition("#")[0]
    key_id = {"kid": kid} if kid is not None else {}
    return jwt.encode(
        claims(**changes), private(kind), algorithm=algorithm, headers={**key_id, **(headers or {})}
    )
