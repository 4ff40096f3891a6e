import pytest

from gateway.rate_limit.windows import LimitStatus, SubjectRules, Window
from kaiten.settings.models import RateLimitSettings
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


@pytest.mark.parametrize(
    ("identity", "limits"),
    [
        ("kaiten|alice", (100, None, 8)),
        # What a plan leaves out is the default.
        ("kaiten|nightly", (5, 9, 8)),
        ("partner|anyone", (None, None, 8)),
        # A subject's own plan comes before that of its issuer.
        ("partner|a|b", (7, None, 8)),
        ("partners|a", (100, None, 8)),
    ],
)
def test_a_subject_has_the_limits_of_its_plan_or_its_issuers_or_the_default(
    identity: str, limits: tuple[int | None, int | None, int | None]
) -> None:
    settings = {
        "requests": "100/minute",
        "tokens": "off",
        "concurrency": 8,
        "plans": {
            "batch": {"requests": "5/minute", "tokens": "9/minute"},
            "partners": {"requests": "off"},
            "small": {"requests": "7/minute"},
        },
        "subjects": {"kaiten|nightly": "batch", "partner|*": "partners", "partner|a|b": "small"},
    }
    by_subject = SubjectRules(RateLimitSettings.model_validate(settings))
    held_to = by_subject.subject(identity).rules
    amounts = [item.amount if item else None for item in (held_to.requests, held_to.tokens)]
    assert (*amounts, held_to.concurrency) == limits
