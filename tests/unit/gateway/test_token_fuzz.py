import base64
import hashlib
import hmac
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.gateway.house import AUTH, GOOD, SECRET, V1, House, Json, error_of

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True, database=None)
USUAL = {
    "iss": AUTH.issuer,
    "aud": AUTH.audience,
    "sub": "alice",
    "scope": "predict",
    "exp": 4_102_444_800,
}
HEADER_NAMES = ("alg", "typ", "kid", "crit", "jku", "jwk", "x5u", "x5c", "cty", "zip", "b64")
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), float("inf"), "none", "HS256", "HS512", "RS256"])
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
headers = st.dictionaries(st.sampled_from(HEADER_NAMES), values)
claims = st.dictionaries(st.sampled_from([*USUAL, "nbf", "iat", "jti"]), values)
segments = st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode())


def encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def sign(header: Json, payload: Json, secret: str) -> bytes:
    words = b".".join(encoded(json.dumps(part).encode()) for part in (header, payload))
    return words + b"." + encoded(hmac.digest(secret.encode(), words, hashlib.sha256))


async def is_refused(authorization: bytes) -> bool:
    """Whether the answer is a 401 in the envelope; an exception would come out here."""
    answer = await House().post(V1, GOOD[V1], {"Authorization": authorization})
    return (answer.status_code, error_of(answer)["code"]) == (401, "unauthenticated")


@EXAMPLES
@given(st.binary())
async def test_any_bytes_are_refused(authorization: bytes) -> None:
    assert await is_refused(authorization)


@EXAMPLES
@given(st.binary())
async def test_any_bytes_as_a_token_are_refused(token: bytes) -> None:
    assert await is_refused(b"Bearer " + token)


@EXAMPLES
@given(st.lists(segments, max_size=6))
async def test_any_segments_are_refused(parts: list[bytes]) -> None:
    assert await is_refused(b"Bearer " + b".".join(map(encoded, parts)))


@EXAMPLES
@given(headers, claims)
async def test_anything_signed_by_another_is_refused(header: Json, changes: Json) -> None:
    token = sign({"alg": "HS256"} | header, USUAL | changes, "fedcba9876543210" * 4)
    assert await is_refused(b"Bearer " + token)


@EXAMPLES
@given(headers, claims)
async def test_odd_words_under_a_good_signature_end_in_an_answer(
    header: Json, changes: Json
) -> None:
    token = sign({"alg": "HS256"} | header, USUAL | changes, SECRET)
    answer = await House().post(V1, GOOD[V1], {"Authorization": b"Bearer " + token})
    assert answer.status_code in {200, 401, 403}
