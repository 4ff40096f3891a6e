import base64
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.auth.authenticator import Authenticator
from gateway.auth.credentials import Credentials, new_api_key
from gateway.auth.signing_secret import SigningSecret
from gateway.auth.verification_keys import from_secret
from gateway.auth.verifier import StaticKey, TrustedIssuer, Verifier
from gateway.exchange import Exchange, add_exchange
from gateway.middleware.access import AccessMiddleware, Callers
from kaiten.errors import Unauthenticated
from tests.unit.gateway.house import (
    AUTH,
    BENTO,
    CANARY,
    GOOD,
    PREDICTIONS,
    SECRET,
    TAG,
    V1,
    V2,
    Classifier,
    House,
    Json,
    Raising,
    bearer,
    error_of,
)

OTHER_SECRET = "fedcba9876543210" * 4
HOUR = 3600


def claims(**changes: Json) -> dict[str, Json]:
    """Return good claims with some changed; those changed to None are left out."""
    now = int(time.time())
    good = {
        "sub": CANARY,
        "scope": "predict",
        "iss": AUTH.issuer,
        "aud": AUTH.audience,
        "iat": now,
        "exp": now + HOUR,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(*, key: str = SECRET, algorithm: str = "HS256", **changes: Json) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm)


def segments(*parts: str) -> str:
    encoded = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
    return ".".join(encoded)


HEADER = json.dumps({"alg": "HS256", "typ": "JWT"})
LATER = int(time.time()) + HOUR
EARLIER = int(time.time()) - HOUR

REJECTED = {
    "garbage": CANARY,
    "three parts of garbage": f"{CANARY}.{CANARY}.{CANARY}",
    "not ASCII": "ü.ü.ü",
    "more than one": f"{token()} {token()}",
    "expired": token(exp=EARLIER),
    "not yet valid": token(nbf=LATER),
    "issued later": token(iat=LATER),
    "unsigned": token(key="", algorithm="none"),
    "signature cut off": token().rpartition(".")[0] + ".",
    "HS512": token(algorithm="HS512"),
    "other secret": token(key=OTHER_SECRET),
    "other audience": token(aud="elsewhere"),
    "other issuer": token(iss="elsewhere"),
    "no exp": token(exp=None),
    "no sub": token(sub=None),
    "no aud": token(aud=None),
    "no iss": token(iss=None),
    "exp no number": segments(HEADER, json.dumps(claims(exp="soon")), "x"),
    "header no object": segments("null", "{}", "x"),
    "header deeply nested": segments("[" * 5000, "{}", "x"),
    "claims deeply nested": segments(HEADER, "[" * 5000, "x"),
    "huge and good": token(padding="x" * 9000),
}


async def ask(
    house: House, path: str, authorization: str | bytes, client: str = "127.0.0.1"
) -> int:
    answer = await house.post(path, GOOD[path], {"Authorization": authorization}, client=client)
    return answer.status_code


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic YWxpY2U6cHc=", f"Token {token()}", token()]
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_caller_without_a_bearer_token_is_asked_for_one(
    path: str, authorization: str
) -> None:
    answer = await House().post(path, GOOD[path], {"Authorization": authorization})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kaiten"'


async def test_a_caller_without_the_header_is_asked_for_a_token() -> None:
    answer = await House().ask("POST", V2, b"{}", {"Content-Type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kaiten"'


@pytest.mark.parametrize("rejected", REJECTED.values(), ids=REJECTED)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_token_that_does_not_hold_is_rejected(path: str, rejected: str) -> None:
    house = House()
    answer = await house.post(path, GOOD[path], {"Authorization": f"Bearer {rejected}"})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthenticated")
    assert error_of(answer)["message"] == "The bearer token is not valid; obtain a new one."
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kaiten", error="invalid_token"'
    assert rejected not in answer.text
    assert CANARY not in answer.text
    assert await ask(house, path, bearer("predict")) == 200


@pytest.mark.parametrize("rejected", REJECTED.values(), ids=REJECTED)
async def test_the_answer_tells_no_kind_of_fault(rejected: str) -> None:
    answer = await House().post(V1, GOOD[V1], {"Authorization": f"Bearer {rejected}"})
    garbage = await House().post(V1, GOOD[V1], {"Authorization": "Bearer x"})
    assert {**error_of(answer), "request_id": ""} == {**error_of(garbage), "request_id": ""}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_the_scheme_is_read_in_any_case(path: str, scheme: str) -> None:
    assert await ask(House(), path, f"{scheme} {token()}") == 200


async def test_clocks_may_differ_by_the_leeway() -> None:
    near = int(time.time()) + AUTH.leeway_s // 2
    assert await ask(House(), V1, f"Bearer {token(nbf=near)}") == 200


@pytest.mark.parametrize(
    "scope", ["predict", "predict:intent", "ops predict", "admin  predict:intent\tops"]
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_scope_for_the_model_lets_in(path: str, scope: str) -> None:
    assert await ask(House(), path, f"Bearer {token(scope=scope)}") == 200


@pytest.mark.parametrize(
    "scope",
    [
        None,
        "",
        "ops",
        "admin",
        "Predict",
        "predict:",
        "predict:topic",
        "predict:intent:1.0.0",
        "predict:inten",
        "predict,ops",
        ["predict"],
        {"predict": True},
        1,
        True,
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_another_scope_does_not_let_in(path: str, scope: Json) -> None:
    house = House()
    scoped_token = token(scope=scope)
    answer = await house.post(path, GOOD[path], {"Authorization": f"Bearer {scoped_token}"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
    challenge = 'Bearer realm="kaiten", error="insufficient_scope", scope="predict'
    assert answer.headers["WWW-Authenticate"].startswith(challenge)
    assert scoped_token not in answer.text
    assert house.events.emitted == []


@pytest.mark.parametrize("scope", ["ops:", "ops:read", "ops:intent", "opsx", "admin"])
async def test_a_scope_that_only_begins_like_the_routes_is_rejected(scope: str) -> None:
    answer = await House().ask("GET", "/ops/stats", headers={"Authorization": bearer(scope)})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")


@pytest.mark.parametrize(("model", "status"), [("intent", 403), ("topic", 200), (None, 403)])
@pytest.mark.parametrize("path", [V2, BENTO])
async def test_a_scope_for_one_model_is_for_no_other(
    path: str, model: str | None, status: int
) -> None:
    house = House(Classifier(TAG), Classifier("topic:2.1.0"))
    body = {"inputs": ["billing"], "model": model}
    answer = await house.post(path, body, {"Authorization": bearer("predict:topic")})
    assert answer.status_code == status


def own_issuer() -> dict[str, TrustedIssuer]:
    key = StaticKey(from_secret(SECRET))
    allowed = frozenset({"HS256"})
    return {AUTH.issuer: TrustedIssuer(AUTH.issuer, AUTH.audience, key, allowed)}


DEVELOPMENT = SigningSecret(SECRET, development=True)


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_the_development_secret_serves_this_machine(path: str, client: str) -> None:
    assert await ask(House(secret=DEVELOPMENT), path, bearer("predict"), client) == 200


@pytest.mark.parametrize(
    "client",
    ["192.0.2.1", "10.0.0.1", "0.0.0.0", "2001:db8::1", "::ffff:192.0.2.1", "localhost", ""],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_the_development_secret_serves_no_other_machine(path: str, client: str) -> None:
    house = House(secret=DEVELOPMENT)
    answer = await house.post(path, GOOD[path], client=client)
    assert (answer.status_code, error_of(answer)["code"]) == (403, "loopback_only")
    assert await ask(House(), path, bearer("predict"), client) == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/docs.json"])
async def test_the_development_secret_closes_no_open_route(path: str) -> None:
    answer = await House(secret=DEVELOPMENT).ask("GET", path, client="192.0.2.1")
    assert answer.status_code == 200


@pytest.mark.parametrize("kind", ["good", "other model's"])
@pytest.mark.parametrize(
    "house",
    [House(), House(Classifier(ready=False)), House(Raising(RuntimeError()))],
    ids=["answered", "not ready", "failed"],
)
async def test_the_token_is_never_in_the_answer(house: House, kind: str) -> None:
    authorization = bearer("predict" if kind == "good" else "predict:topic")
    answer = await house.post(V2, GOOD[V2], {"Authorization": authorization})
    answer_text = answer.text + str(answer.headers)
    assert authorization.removeprefix("Bearer ") not in answer_text
    assert authorization.rpartition(".")[2] not in answer_text


@pytest.mark.parametrize("authorization", ["", "Bearer x", f"Bearer {token(exp=EARLIER)}"])
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_the_body_of_an_unknown_caller_is_not_read(path: str, authorization: str) -> None:
    reads: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        reads.append(b"{}")
        yield b"{}"

    answer = await House().post(path, body(), {"Authorization": authorization})
    assert answer.status_code == 401
    assert reads == []


async def test_a_token_that_was_good_a_moment_ago_is_refused_once_it_has_expired() -> None:
    now = time.time()
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["path"])

    verifier = Verifier(own_issuer(), AUTH.leeway_s)
    authenticator = Authenticator(verifier, Credentials, clock=lambda: now)
    callers = Callers(authenticator, loopback_only=False)
    middleware = AccessMiddleware(app, callers)

    async def ask(authorization: str) -> None:
        headers = [(b"authorization", authorization.encode())]
        scope = {"type": "http", "path": V1, "headers": headers, "client": ("127.0.0.1", 1)}
        add_exchange(scope, Exchange("1", match=House().services.routes.match("POST", V1)))
        await middleware(scope, no_message, no_send)

    good, same = f"Bearer {token()}", f"Bearer {token()}"
    await ask(good)
    await ask(same)
    now += HOUR + AUTH.leeway_s
    with pytest.raises(Unauthenticated):
        await ask(good)
    assert passed == [V1, V1]


@pytest.mark.parametrize("api_key", ["nothing", f"kaiten_{'0' * 16}_{'a' * 43}"])
async def test_an_api_key_that_does_not_hold_is_called_an_api_key(api_key: str) -> None:
    headers = {"Content-Type": "application/json", "X-API-Key": api_key}
    answer = await House().ask("POST", V2, b"{}", headers)
    assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthenticated")
    assert error_of(answer)["message"] == "The API key is not valid; obtain a new one."
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kaiten"'


async def test_a_revoked_api_key_is_called_an_api_key() -> None:
    expiry = datetime.now(UTC) + timedelta(hours=1)
    key_id, api_key, record = new_api_key("job", ("predict",), expiry)
    credentials = Credentials().with_api_key(key_id, record).without_api_key(key_id)
    authenticator = Authenticator(Verifier(own_issuer(), AUTH.leeway_s), lambda: credentials)
    middleware = AccessMiddleware(no_app, Callers(authenticator, loopback_only=False))
    headers = [(b"x-api-key", api_key.encode())]
    scope = {"type": "http", "path": V1, "headers": headers, "client": ("127.0.0.1", 1)}
    add_exchange(scope, Exchange("1", match=House().services.routes.match("POST", V1)))
    with pytest.raises(Unauthenticated, match="The API key is not valid"):
        await middleware(scope, no_message, no_send)


async def test_a_token_beside_an_api_key_is_asked_to_be_one_credential() -> None:
    answer = await House().post(V2, GOOD[V2], {"X-API-Key": "nothing"})
    assert answer.status_code == 401
    assert error_of(answer)["message"].startswith("One credential is required; send Authorization")


async def test_one_callers_token_is_never_taken_for_anothers() -> None:
    house = House()
    for scope, status in (("predict", 200), ("ops", 403), ("predict", 200), ("ops", 403)):
        answer = await house.post(V1, GOOD[V1], {"Authorization": bearer(scope)})
        assert answer.status_code == status


async def no_message() -> Message:
    raise AssertionError


async def no_send(_: Message) -> None:
    raise AssertionError


async def no_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError
