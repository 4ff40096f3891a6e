from collections.abc import Mapping
from typing import Any

import pytest
from bentoml._internal.configuration.containers import BentoMLConfiguration

from kaiten.errors import InvalidSettings
from server.bentoml_config import check_services

NAME = "kaiten_service"


def merged(services: Mapping[str, Any]) -> dict[str, Any]:
    """Return what BentoML makes of services that a file names, and what ours says of itself."""
    own = {"services": {NAME: {"workers": 1, "traffic": {"timeout": 60}}}}
    read = BentoMLConfiguration(
        override_defaults=own,
        override_config_json={"services": services} if services else None,
        use_version=2,
    )
    found: dict[str, Any] = read.to_dict()["services"]
    return found


def problems(services: Mapping[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as caught:
        check_services(merged(services))
    return {each.field: each.reason for each in caught.value.details}


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
    check_services(merged({NAME: service} if service else {}))


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


def test_key_like_none_is_told_all_there_are() -> None:
    (reason,) = problems({NAME: {"traffic": {"zzz": 1}}}).values()
    assert reason.startswith("is not a key of BentoML's; known: timeout, max_concurrency, ")


def test_misspelled_service_is_refused() -> None:
    found = problems({"kaiten-service": {"workers": 4}})
    assert found == {
        "services.kaiten-service": "names no service here; did you mean kaiten_service?"
    }


def test_value_for_all_services_is_refused_as_ours_outranks_it() -> None:
    found = problems({"workers": 4, "traffic": {"timeout": 90}})
    assert [*found] == ["services.workers", "services.traffic"]
    assert found["services.workers"] == (
        "is overridden by kaiten_service's own value; move it below services.kaiten_service"
    )


def test_every_problem_is_told_at_once() -> None:
    found = problems({"threads": 2, "kaiten": {}, NAME: {"worker": 1, "metric": {"a": 1}}})
    assert {*found} == {
        "services.threads",
        f"services.{NAME}.worker",
        f"services.{NAME}.metric",
    }
