import pytest

from gateway.rate_limit.windows import LimitStatus, Window
from tests.unit.gateway.rate_limit.house import rules


@pytest.mark.parametrize(
    ("limits", "policy"),
    [
        ({"requests": "100/minute"}, '"requests";q=100;w=60'),
        ({"requests": "5 per 2 hours"}, '"requests";q=5;w=7200'),
        ({"tokens": "9/day"}, '"tokens";q=9;w=86400;qu="tokens"'),
        ({"concurrency": 7}, '"concurrency";q=7;qu="concurrent-requests"'),
        (
            {"requests": "1/second", "concurrency": 3},
            '"requests";q=1;w=1, "concurrency";q=3;qu="concurrent-requests"',
        ),
    ],
)
def test_the_policy_is_sent(limits: dict[str, str | int], policy: str) -> None:
    headers = dict(rules(**limits).headers(LimitStatus(None, None, None)))  # type: ignore[arg-type]
    assert headers == {b"ratelimit-policy": policy.encode()}


def test_what_is_left_is_sent() -> None:
    limits = rules(requests="100/minute", tokens="1000/hour")
    status = LimitStatus(None, Window(40, 30), Window(960, 3000))
    assert dict(limits.headers(status))[b"ratelimit"] == (
        b'"requests";r=60;t=30, "tokens";r=40;t=3000'
    )
    # Overdrawn is nothing left.
    overdrawn = status._replace(tokens=Window(1400, 3000))
    assert b'"tokens";r=0;' in dict(limits.headers(overdrawn))[b"ratelimit"]
