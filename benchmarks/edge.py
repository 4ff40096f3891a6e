"""`python -m benchmarks.edge`: CPU microseconds that the whole edge costs a request.

A request of one short text goes through every middleware, the default limits and the metrics of
this process to a handler whose model has its answer ready: nothing of a server's sockets, and
nothing of a model. Each kind of credential is measured in turn, over several rounds; the figures
are medians. Writes results/DATE-edge.json and .md, and exits 1 where a mark is missed.
"""

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import numpy as np

from benchmarks import ledger, places
from kaiten.settings.models import LoggingSettings, StateSettings
from monitors.logging.setup import configure_logging

_ISSUER, _AUDIENCE = "https://login.example.org/", "kaiten"
_PASSES = 3
# What each way may cost, in microseconds; None has no mark.
MARKS: Mapping[str, int | None] = {
    "known token": 500,
    "known ES256 token": 500,
    "API key": 500,
    "fresh ES256 token": 1000,
    "fresh RS256 token": None,
    "known token, limits in Redis": None,
}


@dataclass(frozen=True)
class _Answer:
    """What a model's runner has found for one text."""

    scores: Any
    index: int = 1
    confidence: float = 0.9
    tokens: int = 12
    unknown_tokens: int = 0
    entropy: float = 0.3
    distance: float | None = 0.5
    truncated: bool = False


@dataclass(frozen=True)
class _Way:
    """One kind of credential: its authenticator, and the headers of each request."""

    callers: Any
    headers: Callable[[int], ledger.Headers]
    state: StateSettings


def _ways(redis: str | None) -> dict[str, _Way]:
    # Not at the top: prometheus_client looks for its directory when it is imported.
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    keys: dict[str, Any] = {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    fresh = {name: _fresh(name, key) for name, key in keys.items()}
    callers = {name: _callers(name, key) for name, key in keys.items()}
    key_callers, api_key = _with_api_key()
    state = StateSettings()
    ways = {
        "known token": _Way(None, _always(ledger.own_token()), state),
        "known ES256 token": _Way(callers["ES256"], _always(fresh["ES256"](0)[1]), state),
        "API key": _Way(key_callers, _always((b"x-api-key", api_key.encode())), state),
        "fresh ES256 token": _Way(callers["ES256"], fresh["ES256"], state),
        "fresh RS256 token": _Way(callers["RS256"], fresh["RS256"], state),
    }
    if redis:
        shared = StateSettings.model_validate({"redis_url": redis})
        ways["known token, limits in Redis"] = _Way(None, _always(ledger.own_token()), shared)
    return ways


def _always(credential: tuple[bytes, bytes]) -> Callable[[int], ledger.Headers]:
    headers = ledger.request_headers(credential)
    return lambda _: headers


def _fresh(algorithm: str, key: Any) -> Callable[[int], ledger.Headers]:
    """Return the headers of each request, no two with one token."""
    import jwt

    token_count = ledger.REQUESTS * (ledger.ROUNDS + 1) * _PASSES
    now = int(time.time())
    claims = {"iss": _ISSUER, "aud": _AUDIENCE, "sub": "benchmark", "scope": "predict"}
    tokens = iter(
        [
            jwt.encode({**claims, "exp": now + 3600, "jti": str(number)}, key, algorithm)
            for number in range(token_count + 1)
        ]
    )

    def headers(_: int) -> ledger.Headers:
        return ledger.request_headers((b"authorization", b"Bearer " + next(tokens).encode()))

    return headers


def _callers(algorithm: str, key: Any) -> Any:
    """Return the authenticator of tokens that a public key verifies."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from gateway.auth.authenticator import Authenticator
    from gateway.auth.credentials import Credentials
    from gateway.auth.verification_keys import from_pem
    from gateway.auth.verifier import StaticKey, TrustedIssuer, Verifier
    from gateway.middleware.access import Callers

    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    trusted = TrustedIssuer(_ISSUER, _AUDIENCE, StaticKey(from_pem(pem)), frozenset({algorithm}))
    verifier = Verifier({_ISSUER: trusted}, 10)
    return Callers(Authenticator(verifier, Credentials), loopback_only=False)


def _with_api_key() -> tuple[Any, str]:
    from gateway.auth.authenticator import Authenticator
    from gateway.auth.credentials import Credentials, new_api_key
    from gateway.auth.verifier import Verifier
    from gateway.middleware.access import Callers

    soon = datetime.now(UTC) + timedelta(hours=1)
    key_id, text, stored_key = new_api_key("benchmark", ("predict",), soon)
    credentials = Credentials(api_keys={key_id: stored_key})
    return Callers(Authenticator(Verifier({}, 10), lambda: credentials), loopback_only=False), text


def measure(metrics: str, redis: str | None) -> dict[str, list[float]]:
    """Return the microseconds of each way, pass by pass; the ways take turns."""
    stub = ledger.Stub(_Answer(np.array([0.1, 0.9], np.float32)), ["no", "yes"])
    passes_us: dict[str, list[float]] = {}
    ways = _ways(redis)
    for _ in range(_PASSES):
        for name, way in ways.items():
            edge_options = (metrics, way.callers, way.headers, way.state)
            ask = ledger.through_edge(stub, ["where is my parcel"], *edge_options)
            passes_us.setdefault(name, []).append(asyncio.run(ledger.cpu_us(ask)))
    return passes_us


def write(passes_us: Mapping[str, list[float]], day: str) -> list[str]:
    """Write the result, and return the ways that miss their mark."""
    cpu = f"{platform.machine()}, {os.cpu_count()} cores"
    rows = {
        name: {"us": round(median(passes)), "passes": passes, "mark_us": MARKS[name]}
        for name, passes in passes_us.items()
    }
    content = {"date": day, "machine": cpu, "requests": ledger.REQUESTS, "ways": rows}
    path = places.RESULTS / f"{day}-edge.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# What the edge costs, {day}",
        "",
        (
            "CPU microseconds a request, through all middleware with the default limits, to a "
            f"model that has its answer ready ({cpu}, Python {platform.python_version()}). "
            f"Medians of {_PASSES} passes of {ledger.ROUNDS} rounds of {ledger.REQUESTS:,} "
            "requests; least and most pass beside them."
        ),
        "",
        "| who calls by | µs | least - most | mark |",
        "|---|---|---|---|",
    ]
    for name, passes in passes_us.items():
        span = f"{min(passes):.0f} - {max(passes):.0f}"
        lines.append(f"| {name} | {median(passes):.0f} | {span} | {MARKS[name] or ''} |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [name for name, passes in passes_us.items() if (MARKS[name] or 1e9) < median(passes)]


def main() -> int:
    """Measure; an address of a Redis may be given, for limits that are shared."""
    redis = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        configure_logging(LoggingSettings(level="error"))
        passes_us = measure(metrics, redis)
    missed = write(passes_us, f"{datetime.now(UTC):%Y-%m-%d}")
    for name, passes in passes_us.items():
        print(f"{name:32} {median(passes):6.0f} us  {'missed' if name in missed else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
