"""Verification keys from secrets, PEM files and JWK sets, with the algorithms of their type."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

_MIN_RSA_BITS = 2048
_MAX_KEYS = 400
_EMPTY: tuple[object, ...] = (None, "", [])
# The id that stands for keys without one.
UNNAMED = ""
# RFC 7518, 3.2: a secret is at least as long as the hash output.
_BY_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_BY_CURVE = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_EDDSA = frozenset({"EdDSA"})
# RFC 9864 names the curve where RFC 8037 has one name for both.
_BY_EDWARDS_CURVE = {"Ed25519": Ed25519PublicKey, "Ed448": Ed448PublicKey}
# Those of RFC 7518, 6.2.2 and 6.3.2: each gives a private key away.
_PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth"}
_BY_TYPE: Mapping[str, type[jwt.algorithms.Algorithm]] = {
    "RSA": jwt.algorithms.RSAAlgorithm,
    "EC": jwt.algorithms.ECAlgorithm,
    "OKP": jwt.algorithms.OKPAlgorithm,
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its algorithms, so that a public key is never used as an HMAC secret."""

    material: Any = field(repr=False)
    algorithms: frozenset[str]


# Keys by key id.
KeySet = Mapping[str, tuple[Key, ...]]


def from_secret(secret: str) -> Key:
    """Return the key of a shared secret.

    Raises:
        ValueError: The secret is too short for every algorithm.

    """
    length = len(secret.encode())
    allowed = {name for name, least in _BY_SECRET_BYTES.items() if length >= least}
    if not allowed:
        raise ValueError(f"is shorter than {_BY_SECRET_BYTES['HS256']} bytes")
    return Key(secret, frozenset(allowed))


def from_pem(content: bytes) -> Key:
    """Return the public key of a PEM file, or of the certificate in it.

    Raises:
        ValueError: The file holds a private key, or no usable public key.

    """
    if b"PRIVATE KEY" in content:
        raise ValueError("holds a private key; give the public one only")
    try:
        if b"BEGIN CERTIFICATE" in content:
            return _public(load_pem_x509_certificate(content).public_key())
        return _public(load_pem_public_key(content))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"holds no usable public key in PEM: {error}") from None


def from_jwks(content: bytes) -> KeySet:
    """Return the keys of a JWK set (RFC 7517) that verify signatures, by ``kid``.

    One ``kid`` may name several keys (RFC 7517, 4.5), such as one for each algorithm. Keys without
    a ``kid`` are under UNNAMED.

    Skips keys of another use or an unknown type, broken keys, shared secrets and private keys.

    Raises:
        ValueError: It is not a JWK set, or has no usable key. An issuer that publishes an empty set
            by mistake has not withdrawn all keys.

    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or len(keys) > _MAX_KEYS:
        raise ValueError(f"is not a JWK set of up to {_MAX_KEYS} keys")
    keys_by_id: dict[str, tuple[Key, ...]] = {}
    for jwk in keys:
        # Some issuers write null, or nothing in quotes, for what a key does not have.
        members = {k: v for k, v in jwk.items() if v not in _EMPTY} if isinstance(jwk, dict) else {}
        key, kid = _from_jwk(members), members.get("kid", UNNAMED)
        if key is None or type(kid) not in {str, int}:
            continue
        kid = str(kid)
        if key not in keys_by_id.get(kid, ()):
            keys_by_id[kid] = (*keys_by_id.get(kid, ()), key)
    if not keys_by_id:
        raise ValueError(f"none of its {len(keys)} keys verifies signatures")
    return keys_by_id


def _from_jwk(jwk: Mapping[str, Any]) -> Key | None:
    algorithm = _BY_TYPE.get(str(jwk.get("kty")))
    if algorithm is None or not _is_for_verifying(jwk):
        return None
    try:
        key = _public(algorithm.from_jwk(dict(jwk)))
    except Exception:  # noqa: BLE001  whatever a library makes of one key, the others hold
        return None
    allowed = _pinned(key, jwk["alg"]) if "alg" in jwk else key.algorithms
    return Key(key.material, allowed) if allowed else None


def _is_for_verifying(jwk: Mapping[str, Any]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    operations = [operations] if isinstance(operations, str) else operations
    if not isinstance(operations, list) or "verify" not in operations:
        return False
    return jwk.get("use", "sig") == "sig" and not _PRIVATE_MEMBERS & jwk.keys()


def _pinned(key: Key, name: object) -> frozenset[str]:
    """Return the algorithms that a key keeps if its ``alg`` is this."""
    if not isinstance(name, str):
        return frozenset()
    if curve := _BY_EDWARDS_CURVE.get(name):
        return key.algorithms if isinstance(key.material, curve) else frozenset()
    return key.algorithms & {name}


def _public(key: object) -> Key:
    match key:
        case RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
            return Key(key, _RSA)
        case RSAPublicKey():
            raise ValueError(f"an RSA key needs at least {_MIN_RSA_BITS} bits")
        case EllipticCurvePublicKey() if key.curve.name in _BY_CURVE:
            return Key(key, frozenset({_BY_CURVE[key.curve.name]}))
        case Ed25519PublicKey() | Ed448PublicKey():
            return Key(key, _EDDSA)
    raise ValueError("of a kind that no algorithm here takes (RSA, P-256, P-384, P-521, Ed25519)")
