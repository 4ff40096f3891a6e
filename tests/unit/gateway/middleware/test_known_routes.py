"""Nothing passes that is not listed to the letter."""

import pytest

from tests.unit.gateway.house import House, error_of, paths_of

TABLE = House().services.routes
PATHS = sorted(path for path in paths_of(TABLE) if "{" not in path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tail", ["%0A", "%0D", "%20", "x/", "%00", "%0A%0A", ";x"])
async def test_a_path_with_something_behind_it_is_unknown(path: str, tail: str) -> None:
    house = House()
    answer = await house.ask("POST", f"{path}{tail}")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert house.metrics.answered == []


@pytest.mark.parametrize(
    "name",
    ["", "%2e%2e/metrics", "%2e%2e", ".hidden", "a/b", "a%00", "a%0A", "a;x", "a/"],
)
async def test_what_is_no_plain_file_name_is_no_part_of_the_page(name: str) -> None:
    answer = await House().ask("GET", f"/static_content/{name}")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert TABLE.match("GET", "/static_content/swagger-ui-bundle.js") is not None


@pytest.mark.parametrize("path", PATHS)
async def test_other_methods_are_answered_with_those_allowed(path: str) -> None:
    match = TABLE.match("PATCH", path)
    assert match is not None
    answer = await House().ask("PATCH", path)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == ", ".join(match.allowed)
