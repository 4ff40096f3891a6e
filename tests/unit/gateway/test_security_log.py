import jwt
import pytest
from structlog.typing import EventDict

from gateway.security_log import tell
from kaiten.signing import SigningSecret
from tests.unit.gateway.house import (
    BENTO,
    CANARY,
    GOOD,
    PREDICTIONS,
    SECRET,
    V1,
    V2,
    House,
    bearer,
)

EXPIRED = jwt.encode(
    {"sub": CANARY, "scope": "predict", "iss": "kaiten", "aud": "kaiten", "exp": 1}, SECRET
)


def events(logged: list[EventDict]) -> list[EventDict]:
    """Return the security events: every line but the request's own."""
    return [line for line in logged if line["event"] != "request"]


@pytest.mark.parametrize(
    ("token", "fault"),
    [
        ("x", "DecodeError"),
        (EXPIRED, "ExpiredSignatureError"),
        (f"{EXPIRED}x", "InvalidSignatureError"),
        ("x" * 9000, "size"),
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_every_rejected_token_is_told_with_its_fault(
    logged: list[EventDict], path: str, token: str, fault: str
) -> None:
    house = House()
    for _ in range(30):
        await house.post(path, GOOD[path], {"Authorization": f"Bearer {token}"})
    assert (
        events(logged)
        == [
            {
                "event": "token_rejected",
                "fault": fault,
                "endpoint": path,
                "log_level": "warning",
            }
        ]
        * 30
    )
    assert token not in str(logged)
    assert CANARY not in str(logged)


@pytest.mark.parametrize(
    ("path", "scope", "lacks"),
    [
        (V1, "ops", "lacks predict"),
        (V1, "predict:topic", "lacks predict:intent"),
        (V2, "predict:topic", "lacks predict:intent"),
        (BENTO, "predict:topic", "lacks predict:intent"),
    ],
)
async def test_a_missing_scope_is_told_wherever_it_was_missed(
    logged: list[EventDict], path: str, scope: str, lacks: str
) -> None:
    await House().post(path, GOOD[path], {"Authorization": bearer(scope)})
    (line,) = events(logged)
    assert (line["event"], line["fault"], line["endpoint"]) == ("forbidden", lacks, path)


async def test_a_caller_from_elsewhere_is_told_of(logged: list[EventDict]) -> None:
    secret = SigningSecret(SECRET, development=True)
    await House(secret=secret).post(V1, GOOD[V1], client="203.0.113.9")
    (line,) = events(logged)
    assert (line["event"], line["fault"], line["endpoint"]) == ("loopback_refused", None, V1)


@pytest.mark.parametrize("authorization", ["", "Basic YWxpY2U6cHc=", bearer("predict")])
async def test_what_is_no_attack_is_not_told(logged: list[EventDict], authorization: str) -> None:
    await House().post(V1, GOOD[V1], {"Authorization": authorization})
    assert events(logged) == []


def test_an_act_outside_a_request_is_told_as_well(logged: list[EventDict]) -> None:
    tell("key_created", key="7f3a")
    (line,) = logged
    assert (line["event"], line["key"]) == ("key_created", "7f3a")
    assert (line["fault"], line["endpoint"]) == (None, None)
