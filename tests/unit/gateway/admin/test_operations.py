from datetime import UTC, datetime

import pytest

from tests.unit.gateway.house import V1, V2, House, bearer, error_of

STATS, DRIFT = "/ops/stats", "/ops/drift"
NOTHING = dict.fromkeys(
    ("mean_ms", "min_ms", "max_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"), None
)


async def test_each_route_of_a_model_is_reported_in_milliseconds() -> None:
    house = House()
    times = house.times
    for milliseconds in range(1, 101):
        times.add(V2, 200, milliseconds / 1000)
    times.add(V2, 429, 0.001)
    answer = (await house.ask("GET", STATS, headers={"Authorization": bearer("ops")})).json()
    routes = {stats.pop("route"): stats for stats in answer["routes"]}
    assert [*routes] == [*house.services.routes.model_routes]
    assert routes[V1] == {"count": 0, "errors": {}, **NOTHING}
    v2_stats = routes[V2]
    assert (v2_stats["count"], v2_stats["errors"]) == (100, {"429": 1})
    assert (v2_stats["mean_ms"], v2_stats["min_ms"], v2_stats["max_ms"]) == (50.5, 1, 100)
    # The least whole milliseconds that the share took at most, as these are.
    for share, expected in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert v2_stats[f"{share}_ms"] == pytest.approx(expected, rel=0.01)
    assert datetime.fromisoformat(answer["since"]) <= datetime.now(UTC)


@pytest.mark.parametrize("route", [STATS, DRIFT])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_only_operators_are_answered(method: str, route: str) -> None:
    house = House()
    assert (await house.ask(method, route)).status_code == 401
    refusal = await house.ask(method, route, headers={"Authorization": bearer("predict")})
    assert refusal.status_code == 403
    answer = await house.ask(method, route, headers={"Authorization": bearer("ops")})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert bool(answer.content) == (method == "GET")


@pytest.mark.parametrize("route", [STATS, DRIFT])
async def test_it_can_only_be_read(route: str) -> None:
    answer = await House().post(route, {}, {"Authorization": bearer("ops")})
    assert answer.status_code == 405
    assert error_of(answer)["code"] == "method_not_allowed"
