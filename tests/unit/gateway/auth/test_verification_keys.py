"""Which keys are taken, and the only algorithms that each one verifies."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from jwt.algorithms import OKPAlgorithm

from gateway.auth.verification_keys import from_jwks, from_pem, from_secret
from tests.unit.gateway.auth.mint import jwk, jwks, private, private_pem, public_pem

RSA = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
KINDS = {
    "RS256": RSA,
    "ES256": {"ES256"},
    "ES384": {"ES384"},
    "ES512": {"ES512"},
    "EdDSA": {"EdDSA"},
    "Ed448": {"EdDSA"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_key_verifies_the_algorithms_of_its_type_and_no_other(kind: str) -> None:
    assert from_pem(public_pem(kind)).algorithms == KINDS[kind]
    ((key,),) = from_jwks(jwks(jwk(kind))).values()
    assert key.algorithms == KINDS[kind]


def test_certificate_gives_its_key() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=private("ES256").public_key(),
        serial_number=1,
        not_valid_before=now,
        not_valid_after=now + timedelta(days=1),
    )
    certificate = builder.sign(private("ES256"), hashes.SHA256())
    assert from_pem(certificate.public_bytes(Encoding.PEM)).algorithms == {"ES256"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no usable public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no usable public key"),
        (private_pem("ES256"), "holds a private key"),
        (public_pem("short"), "at least 2048 bits"),
        (public_pem("ES256K"), "of a kind that no algorithm"),
    ],
)
def test_file_that_is_no_key_is_rejected(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_pem(content)


@pytest.mark.parametrize(("length", "allowed"), [(32, 1), (48, 2), (64, 3), (100, 3)])
def test_secret_is_as_long_as_the_hash(length: int, allowed: int) -> None:
    assert len(from_secret("s" * length).algorithms) == allowed


def test_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than 32"):
        from_secret("s" * 31)


PASSED_OVER = {
    "for encryption": jwk("RS256", use="enc"),
    "to sign with": jwk("RS256", key_ops=["sign"]),
    "private": jwk("ES256", d="AAAA"),
    "secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "1"},
    "unknown kind": {"kty": "XYZ", "kid": "1"},
    "short": jwk("short"),
    "another curve": jwk("ES256K"),
    "not on its curve": jwk("ES256", x="AAAA"),
    "no number": jwk("RS256", n=5),
    "without its number": jwk("RS256", n=None),
    "pinned to another type": jwk("ES256", alg="HS256"),
    "pinned to no name": jwk("ES256", alg=["ES256"]),
    "no object": 5,
    "private by its factors alone": jwk("RS256", p="AAAA", q="AAAA"),
    "with an id that is a list": {**jwk("ES256"), "kid": ["1"]},
    "with an id that is true": {**jwk("ES256"), "kid": True},
    "for a list of uses": jwk("ES256", use=["sig"]),
    "with operations in an object": jwk("ES256", key_ops={"verify": True}),
    "of a list of types": jwk("ES256", kty=["EC"]),
    "of a list of curves": jwk("ES256", crv=["P-256"]),
    "of an unknown curve": jwk("EdDSA", crv="X25519"),
    "pinned to the other Edwards curve": jwk("Ed448", alg="Ed25519"),
    "a curve's name for another type": jwk("ES256", alg="Ed25519"),
}


@pytest.mark.parametrize("case", PASSED_OVER)
def test_what_verifies_nothing_is_passed_over(case: str) -> None:
    good = jwk("ES384", kid="good", use="sig", key_ops=["verify"])
    content = json.dumps({"keys": [PASSED_OVER[case], good]}).encode()
    assert [*from_jwks(content)] == ["good"]


def test_algorithm_that_a_key_names_is_the_only_one() -> None:
    (key,) = from_jwks(jwks(jwk("RS256", alg="PS384")))["1"]
    assert key.algorithms == {"PS384"}


@pytest.mark.parametrize("empty", [None, "", []])
@pytest.mark.parametrize("name", ["kid", "use", "alg", "key_ops", "d", "p"])
def test_member_that_is_empty_is_as_if_it_were_not_there(name: str, empty: object) -> None:
    content = json.dumps({"keys": [{**jwk("RS256"), name: empty}]}).encode()
    assert [*from_jwks(content)] == ["" if name == "kid" else "1"]


@pytest.mark.parametrize("kind", ["EdDSA", "Ed448"])
def test_algorithm_may_be_named_by_its_curve(kind: str) -> None:
    name = {"EdDSA": "Ed25519"}.get(kind, kind)
    ((key,),) = from_jwks(jwks(jwk(kind, alg=name))).values()
    assert key.algorithms == {"EdDSA"}


def test_id_that_is_a_number_is_found_by_its_digits() -> None:
    assert [*from_jwks(json.dumps({"keys": [{**jwk("ES256"), "kid": 7}]}).encode())] == ["7"]


@pytest.mark.parametrize("fault", [UnsupportedAlgorithm("no such curve"), OverflowError()])
def test_key_that_this_build_of_openssl_lacks_is_passed_over(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(jwk: object) -> None:
        raise fault

    monkeypatch.setattr(OKPAlgorithm, "from_jwk", refuse)
    assert [*from_jwks(jwks(jwk("EdDSA"), jwk("ES256", kid="good")))] == ["good"]


def test_one_id_may_name_several_keys() -> None:
    content = jwks(
        jwk("RS256", alg="RS256"),
        jwk("RS256", alg="PS256"),
        jwk("ES256"),
        # Twice the same is once.
        jwk("ES256"),
        # None of these becomes one of them.
        jwk("RS256#2", use="enc"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "1", "alg": "HS256"},
    )
    keys = from_jwks(content)["1"]
    assert [key.algorithms for key in keys] == [{"RS256"}, {"PS256"}, {"ES256"}]


def test_keys_without_an_id_stand_together() -> None:
    content = jwks(jwk("ES256", kid=None), jwk("ES256#2", kid=None), jwk("ES384", kid="1"))
    assert {kid: len(keys) for kid, keys in from_jwks(content).items()} == {"": 2, "1": 1}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": 1}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_set_is_rejected(content: bytes) -> None:
    with pytest.raises(ValueError, match="is not"):
        from_jwks(content)


def test_set_without_a_key_of_use_is_rejected() -> None:
    with pytest.raises(ValueError, match="none of its 1 keys verifies"):
        from_jwks(jwks(jwk("RS256", use="enc")))


def test_set_of_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="up to 400"):
        from_jwks(json.dumps({"keys": [{}] * 401}).encode())
