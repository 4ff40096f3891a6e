import re
from itertools import product
from typing import Any

import pytest
import yaml

from gateway import admin, protocols
from gateway.api_versions import NEGOTIATED_PATH
from gateway.errors import error_response
from gateway.routes import RouteKind
from kaiten.context import RequestContext, bind
from kaiten.errors import BodyTooLarge, DeadlineExceeded, NotReady, UnknownRoute
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import load_settings

PROFILE = (ROOT / "deploy" / "nginx" / "kaiten.conf").read_text(encoding="utf-8")
DOCS = "".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("operate.md", "reference/errors.md")
)
ROUTES = {spec.path: spec for spec in (*protocols.ROUTES, *admin.ROUTES)}
ROUTES[NEGOTIATED_PATH] = protocols.ROUTES[0]
NAMED = [path for path in ROUTES if "{" not in path]


def value_of(directive: str) -> str:
    """Return what a directive says that stands there once."""
    (value,) = re.findall(rf"^ *{directive} (.+);$", PROFILE, re.MULTILINE)
    return str(value)


def map_of(variable: str) -> dict[str, str]:
    """Return the rows of a map, unquoted."""
    (rows,) = re.findall(rf"^map \S+ \${variable} {{\n(.*?)^}}", PROFILE, re.MULTILINE | re.DOTALL)
    pairs = re.findall(r'^ +("[^"]*"|\S+) ("[^"]*"|\S+);$', rows, re.MULTILINE)
    return {key.strip('"'): value.strip('"') for key, value in pairs}


def pattern_of(variable: str) -> str:
    """Return the one regular expression of a map, as Python writes it."""
    (pattern,) = [key for key in map_of(variable) if key.startswith("~")]
    return pattern.removeprefix("~").replace("(?<", "(?P<")


def test_body_limit_is_the_servers_and_bodies_stay_in_memory() -> None:
    limit = str(load_settings().gateway.max_body_bytes)
    assert value_of("client_max_body_size") == value_of("client_body_buffer_size") == limit


def test_nginx_waits_longer_than_the_server_takes() -> None:
    bentoml: dict[str, Any] = yaml.safe_load((ROOT / "configuration.yaml").read_text("utf-8"))
    back_stop_s = bentoml["services"]["kaiten_service"]["traffic"]["timeout"]
    waits_s = int(value_of("proxy_read_timeout").removesuffix("s"))
    assert waits_s > back_stop_s > load_settings().serving.request_timeout_s


def test_nginx_leaves_an_idle_connection_before_the_server_does() -> None:
    block = PROFILE.partition("upstream kaiten {")[2].partition("}")[0]
    (kept_s,) = re.findall(r"keepalive_timeout (\d+)s;", block)
    assert int(kept_s) + 5 < load_settings().gateway.keep_alive_s


def test_log_names_every_known_path_and_no_other() -> None:
    pattern = re.compile(pattern_of("kaiten_route"))
    for path, query in product(NAMED, ("", "?a=b")):
        match = pattern.match(path + query)
        assert match is not None
        assert match["kaiten_path"] == path
    assert not any(map(pattern.match, ("/nope", "/predict/", "/livezz", "//", "/metrics%20")))


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_for_operators_is_hidden(path: str) -> None:
    pattern = pattern_of("kaiten_is_hidden")
    hidden = re.match(pattern, f"0:{path}") is not None
    assert hidden == (ROUTES[path].kind in {RouteKind.PAGE, RouteKind.SCRAPE, RouteKind.ADMIN})
    assert not re.match(pattern, f"1:{path}")


def test_every_method_of_a_route_is_let_in() -> None:
    pattern = pattern_of("kaiten_is_malformed")
    methods = {method for spec in ROUTES.values() for method in spec.methods}
    assert all(re.match(pattern, f"{method}:HTTP/1.1:/livez") for method in methods)


@pytest.mark.parametrize("error", [UnknownRoute(), BodyTooLarge(1), NotReady()])
def test_what_both_may_say_both_say_alike(error: Exception) -> None:
    bind(RequestContext("id"))
    answer = error_response(error)
    status = str(answer.status_code)
    assert f'"code": "{map_of("kaiten_error_code")[status]}"'.encode() in answer.body
    assert f'"message": "{map_of("kaiten_error_message")[status]}"'.encode() in answer.body


def test_a_late_answer_has_the_code_of_ours() -> None:
    bind(RequestContext("id"))
    assert map_of("kaiten_error_code")["504"].encode() in error_response(DeadlineExceeded(1)).body


def test_every_answer_of_nginx_has_its_words_and_stands_in_the_docs() -> None:
    rows = re.findall(r"^ *error_page (.+);$", PROFILE, re.MULTILINE)
    answers = [re.findall(r"\d+", row) for row in rows]
    overwritten = set(re.findall(r"error_page .*=(\d+)", PROFILE))
    statuses = {status for row in answers if not overwritten & {row[-1]} for status in row}
    codes, messages = map_of("kaiten_error_code"), map_of("kaiten_error_message")
    assert codes.keys() == messages.keys() == (statuses | overwritten | {"default"}) - {"500"}
    assert all(f"`{code}`" in DOCS for code in codes.values())


def test_the_longest_header_line_holds_the_longest_token() -> None:
    count, size = value_of("large_client_header_buffers").split()
    assert int(count) > 1
    assert int(size.removesuffix("k")) * 1024 > 8192 + len("Authorization: Bearer ")
