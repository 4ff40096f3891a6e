from collections.abc import Mapping
from typing import Any

import pytest
from bentoml._internal.configuration.containers import BentoMLConfiguration

from kaiten.errors import InvalidSettings
from server.bentoml_config import check_services

NAME = "kaiten_service"


def merge_services(services: Mapping[str, Any]) -> dict[str, Any]:
    """Return what BentoML makes of services that a file names, and what ours says of itself."""
    defaults = {"services": {NAME: {"workers": 1, "traffic": {"timeout": 60}}}}
    configuration = BentoMLConfiguration(
        override_defaults=defaults,
        override_config_json={"services": services} if services else None,
        use_version=2,
    )
    merged: dict[str, Any] = configuration.to_dict()["services"]
    return merged


def problems(services: Mapping[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as caught:
        check_services(merge_services(services))
    return {detail.field: detail.reason for detail in caught.value.details}


@pytest.mark.parametrize(
    "service",
    [
        {},
        {"workers": "cpu_count"},
        {"traffic": {"timeout": 90, "max_concurrency": 8}},
        {"resources": {"gpu": 1}},
        {"resources": None},
        {"logging": {"access": {"enabled": True, "format": {"trace_id": "x"}}}},
        {"monitoring": {"options": {"of": {"any": "kind"}}}},
        {"tracing": {"otlp": {"http": {"headers": {"any": "header"}}}}},
        {"http": {"cors": {"enabled": True}}},
    ],
)
def test_what_bentoml_reads_is_let_pass(service: dict[str, Any]) -> None:
    check_services(merge_services({NAME: service} if service else {}))


@pytest.mark.parametrize(
    ("service", "path", "guess"),
    [
        ({"worker": 4}, "worker", "workers"),
        ({"trafic": {"timeout": 9}}, "trafic", "traffic"),
        ({"traffic": {"time_out": 9}}, "traffic.time_out", "timeout"),
        ({"logging": {"access": {"enable": False}}}, "logging.access.enable", "enabled"),
        ({"metrics": {"duration": {"bucket": [1.0]}}}, "metrics.duration.bucket", "buckets"),
    ],
)
def test_misspelled_key_is_named_with_the_closest_one(
    service: dict[str, Any], path: str, guess: str
) -> None:
    reason = f"is not a key of BentoML's; did you mean {guess}?"
    assert problems({NAME: service}) == {f"services.{NAME}.{path}": reason}


def test_key_without_a_close_match_is_rejected_with_the_known_keys() -> None:
    (reason,) = problems({NAME: {"traffic": {"zzz": 1}}}).values()
    assert reason.startswith("is not a key of BentoML's; known: timeout, max_concurrency, ")


def test_misspelled_service_is_refused() -> None:
    reasons = problems({"kaiten-service": {"workers": 4}})
    assert reasons == {
        "services.kaiten-service": "names no service here; did you mean kaiten_service?"
    }


def test_value_for_all_services_is_refused_as_ours_outranks_it() -> None:
    reasons = problems({"workers": 4, "traffic": {"timeout": 90}})
    assert [*reasons] == ["services.workers", "services.traffic"]
    assert reasons["services.workers"] == (
        "is overridden by kaiten_service's own value; move it below services.kaiten_service"
    )


def test_every_problem_is_reported_at_once() -> None:
    reasons = problems({"threads": 2, "kaiten": {}, NAME: {"worker": 1, "metric": {"a": 1}}})
    assert {*reasons} == {
        "services.threads",
        f"services.{NAME}.worker",
        f"services.{NAME}.metric",
    }
