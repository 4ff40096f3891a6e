"""Attacks by how a request is written: paths, methods, headers and bodies."""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from gateway.middleware.access import AccessMiddleware
from gateway.middleware.body import BodyMiddleware
from gateway.middleware.request_headers import RequestHeadersMiddleware
from tests.unit.gateway.attacks.attack import (
    Attack,
    Change,
    TakesAnyScheme,
    TakesTheFirst,
    off,
    out,
    setting,
    without_check,
)
from tests.unit.gateway.attacks.stand import Sent
from tests.unit.gateway.attacks.tokens import UNAUTHENTICATED, own_token
from tests.unit.gateway.house import CANARY, LIMITS, V1, V2

NOT_FOUND, NOT_ALLOWED = (404, "not_found"), (405, "method_not_allowed")
MALFORMED, TOO_LARGE = (400, "malformed_request"), (413, "body_too_large")
WRONG_TYPE, COMPRESSED = (415, "unsupported_content_type"), (415, "unsupported_content_encoding")
MISMATCH, INVALID = (400, "version_mismatch"), (422, "invalid_input")
MANY_HEADERS = (431, "headers_too_large")
ANY_ROUTE = without_check(AccessMiddleware, "_check_route")
NO_BODY_CHECK = out(BodyMiddleware)
NO_CONTRADICTION = without_check(RequestHeadersMiddleware, "_check_sizes")
ANY_TYPE = without_check(RequestHeadersMiddleware, "_check_content_types")
ANY_VERSION = without_check(RequestHeadersMiddleware, "_check_version")
JSON = ("Content-Type", "application/json")
PICKLE = "application/vnd.bentoml+pickle"
BODY = json.dumps({"text": CANARY}).encode()
BOMB = json.dumps({"text": CANARY}).ljust(16 * LIMITS.max_body_bytes).encode()
LARGE = BODY.ljust(LIMITS.max_body_bytes + 1)
LONG = CANARY + "x" * LIMITS.max_text_chars


def good(
    *more: tuple[str, str | bytes], body: object = BODY, path: str = V1, **changes: object
) -> Sent:
    """Return a good request, with more headers or changed."""
    headers = [JSON, ("Authorization", f"Bearer {own_token()}"), *more]
    return replace(Sent(path, [*headers], body), **changes)  # type: ignore[arg-type]


def with_content_types(*types: str) -> Sent:
    return Sent(headers=[*(("Content-Type", value) for value in types), *good().headers[1:]])


def path(target: str) -> Attack:
    """Return the attack on the metrics, which ask for a token, by a path that only looks alike."""
    return Attack(lambda: Sent(target, method="GET", body=b""), NOT_FOUND, (ANY_ROUTE,))


def method(name: str, *more: tuple[str, str]) -> Attack:
    return Attack(lambda: good(*more, method=name), NOT_ALLOWED, (ANY_ROUTE,))


def twice(name: str, first: str, second: str) -> Attack:
    """Return the attack by a header that is sent twice, and a server that uses the first."""
    rest = [header for header in good().headers if header[0].lower() != name.lower()]
    both = [(name, first), (name, second), *rest]
    return Attack(lambda: Sent(headers=[*both], body=BODY), MALFORMED, (NO_CONTRADICTION,))


def version(*values: str) -> Attack:
    more = [("API-Version", value) for value in values]
    return Attack(lambda: good(*more), MISMATCH, (ANY_VERSION,))


def bomb(encoding: str, content: bytes) -> Attack:
    """Return a small body; a server that inflates it gets 4 MiB past the limit."""
    return Attack(
        lambda: good(("Content-Encoding", encoding), body=content),
        COMPRESSED,
        (NO_BODY_CHECK,),
        stand_change=off(inflates=True),
    )


def body(content: object, refused: tuple[int, str], *without: Change, path: str = V2) -> Attack:
    return Attack(lambda: good(body=content, path=path), refused, without)


def length(value: str) -> Attack:
    return Attack(
        lambda: good(("Content-Length", value)), (400, "malformed_body"), (NO_BODY_CHECK,)
    )


def bare(*headers: tuple[str, str], path: str = V1) -> Sent:
    return Sent(path, [JSON, *headers], BODY)


def authorization(value: str) -> Attack:
    return Attack(
        lambda: bare(("Authorization", value.format(own_token()))),
        UNAUTHENTICATED,
        (off(authenticator=TakesAnyScheme),),
    )


PATHS: Mapping[str, Attack] = {
    f"path {target}": path(target)
    for target in (
        *("//metrics", "/metrics/", "/METRICS", "/metrics%0a", "/metrics%0d%0a", "/metrics%00"),
        *("/metrics;x=1", "/metrics%3Fx", "/..;/metrics", "/%2e%2e/metrics", "/./metrics"),
        *("/livez/../metrics", "/livez/%2e%2e/metrics", "/%252e%252e/metrics", "/%2fmetrics"),
        *("/%5cmetrics", "/met%2572ics", "/../../metrics", "/metrics%20", "metrics"),
    )
}
BESIDE_THE_PAGE: Mapping[str, Attack] = {
    # What the docs page is made of is open where the page is.
    f"path {target}": replace(path(target), stand_change=setting(docs="open"))
    for target in (
        *("/static_content/../metrics", "/static_content/%2e%2e/metrics"),
        *("/static_content/..;/metrics", "/static_content//../metrics"),
    )
}
METHODS: Mapping[str, Attack] = {
    **{f"method {name}": method(name) for name in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT")},
    "method in small letters": method("post"),
    "method of no standard": method("POST "),
    "method overridden": method("GET", ("X-HTTP-Method-Override", "POST")),
}
EXPOSED: Mapping[str, Attack] = {
    "metrics without a token": Attack(
        lambda: Sent("/metrics", method="GET", body=b""),
        UNAUTHENTICATED,
        (setting(metrics="open"),),
    ),
    "docs that are closed": Attack(
        lambda: Sent("/docs", method="GET", body=b""), NOT_FOUND, (setting(docs="open"),)
    ),
    "another machine with the development secret": Attack(
        lambda: good(("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "::1"), client="192.0.2.1"),
        (403, "loopback_only"),
        (off(loopback_only=False),),
        stand_change=off(loopback_only=True),
    ),
}
HEADERS: Mapping[str, Attack] = {
    "two hosts": twice("Host", "kaiten", "evil.example"),
    "two lengths": twice("Content-Length", str(len(BODY)), "0"),
    "two types": twice("Content-Type", "application/json", "text/plain"),
    "length in hexadecimal": length("0x10"),
    "length with a sign": length("+16"),
    "length of a list": length("16, 16"),
    "large headers": Attack(
        lambda: good(("X-More", CANARY * 2000)), MANY_HEADERS, (setting(max_header_bytes=10**6),)
    ),
    "many headers": Attack(
        lambda: good(*[("X-More", "1")] * 200), MANY_HEADERS, (setting(max_headers=1000),)
    ),
    "two tokens": Attack(
        lambda: good(("Authorization", f"Bearer {own_token(sub='bob')}")),
        MALFORMED,
        (NO_CONTRADICTION, off(authenticator=TakesTheFirst)),
    ),
    "a token twice": Attack(
        lambda: bare(*[("Authorization", f"Bearer {own_token(iat=1)}")] * 2),
        UNAUTHENTICATED,
        (off(authenticator=TakesTheFirst),),
    ),
    "a token and an API key": Attack(
        lambda: good(("X-API-Key", CANARY)),
        UNAUTHENTICATED,
        (off(authenticator=TakesTheFirst),),
    ),
    "scheme Basic": authorization("Basic {}"),
    "scheme Token": authorization("Token {}"),
    "no scheme": authorization("{}"),
    "another version than the path's": version("2"),
    "two versions": version("1", "2"),
    "a version twice": version("1", "1"),
    "an unknown version": Attack(
        lambda: good(("API-Version", "0x1")), (400, "unknown_version"), (ANY_VERSION,)
    ),
}
BODIES: Mapping[str, Attack] = {
    "gzip bomb": bomb("gzip", gzip.compress(BOMB)),
    "deflate bomb": bomb("deflate", zlib.compress(BOMB)),
    "gzip bomb in capitals": bomb("GZIP", gzip.compress(BOMB)),
    "gzip bomb said to be none": bomb("identity, gzip", gzip.compress(BOMB)),
    "plain JSON that is said to be br": Attack(
        lambda: good(("Content-Encoding", "br")), COMPRESSED, (NO_BODY_CHECK,)
    ),
    **{
        f"type {kind}": Attack(partial(with_content_types, kind), WRONG_TYPE, (NO_BODY_CHECK,))
        for kind in (
            *("text/plain", "multipart/form-data; boundary=x", "application/json5", ""),
            *("application/x-www-form-urlencoded", "application/xml", "application/json,text/xml"),
        )
    },
    "a pickle": Attack(lambda: with_content_types(PICKLE), WRONG_TYPE, (NO_BODY_CHECK, ANY_TYPE)),
    "a pickle beside JSON": Attack(
        lambda: with_content_types("application/json", PICKLE),
        MALFORMED,
        (NO_CONTRADICTION, ANY_TYPE),
    ),
    "a pickle where no body is looked at": Attack(
        lambda: Sent("/health", [("Content-Type", PICKLE)], b"", "GET"),
        WRONG_TYPE,
        (ANY_TYPE,),
    ),
    "a large body": Attack(
        lambda: good(("Content-Length", str(len(LARGE))), body=LARGE),
        TOO_LARGE,
        (setting(max_body_bytes=10**6),),
    ),
    "a large body in chunks": Attack(
        lambda: good(body=LARGE, chunk=10_000), TOO_LARGE, (setting(max_body_bytes=10**6),)
    ),
    "a large body that is said to be small": Attack(
        lambda: good(("Content-Length", "2"), body=LARGE),
        TOO_LARGE,
        (setting(max_body_bytes=10**6),),
    ),
    "a slow body": Attack(
        lambda: good(pause_s=0.02, chunk=10),
        (408, "body_timeout"),
        (setting(body_timeout_s=600),),
        stand_change=setting(body_timeout_s=0.005),
    ),
    "many texts": body({"inputs": [CANARY] * 9}, INVALID, setting(max_inputs=10)),
    "a long text": body({"inputs": [LONG]}, INVALID, setting(max_text_chars=1000)),
    "a long text under a key that comes twice": body(
        b'{"inputs": ["%s"], "inputs": ["%s"]}' % (CANARY.encode(), LONG.encode()),
        INVALID,
        setting(max_text_chars=1000),
    ),
}
