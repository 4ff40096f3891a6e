"""What wrk prints is read right, and arrivals do not depend on answers."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.client import Pool, encode
from benchmarks.load import LoadFailed, Target, arrivals, open_loop, parse_wrk, percentile


def wrk_output(**changes: float) -> str:
    summary = {
        "completed": 132,
        "refused": 0,
        "socket_errors": 0,
        "seconds": 6.0,
        "span_s": 5.0,
        "p50_ms": 20.0,
        "p99_ms": 40.0,
        "mean_ms": 21.0,
    }
    return f"Running 6s test\n  a line\n{json.dumps(summary | changes)}\n"


def test_the_rate_is_that_of_the_completions_after_the_first_wave() -> None:
    load = parse_wrk(wrk_output(), connections=32)
    assert load.requests_s == 100 / 5.0
    assert (load.requests, load.p50_ms, load.p99_ms, load.errors) == (132, 20.0, 40.0, 0)


def test_fewer_completions_than_connections_are_counted_over_the_whole_time() -> None:
    load = parse_wrk(wrk_output(completed=3, span_s=0), connections=4)
    assert load.requests_s == 3 / 6.0


def test_refused_requests_are_no_throughput_and_socket_errors_are_errors() -> None:
    load = parse_wrk(wrk_output(refused=66, socket_errors=2), connections=32)
    assert load.requests_s == pytest.approx(10.0)
    assert load.errors == 68


def test_less_than_a_wave_after_the_first_tells_no_rate_of_its_own() -> None:
    # All of it came in one burst, of next to no time.
    load = parse_wrk(wrk_output(completed=40, span_s=0.001), connections=32)
    assert load.requests_s < 40


def test_nothing_completed_is_no_rate_and_no_latency() -> None:
    nothing = wrk_output(completed=0, span_s=0).replace("20.0", "-nan").replace("40.0", "nan")
    load = parse_wrk(nothing, connections=4)
    assert (load.requests_s, load.p50_ms, load.p99_ms) == (0, 0, 0)


def test_a_load_generator_that_fails_says_what_it_said() -> None:
    with pytest.raises(LoadFailed, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1", connections=1)


def test_arrivals_have_the_rate_and_are_the_same_each_time() -> None:
    times = arrivals(rate=100, seconds=20)
    assert times == arrivals(rate=100, seconds=20)
    assert times == sorted(times)
    assert 1800 < len(times) < 2200
    assert times[-1] < 20


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 50, 0), ([7], 99, 7), ([3, 1, 2], 50, 2), (list(range(1, 101)), 99, 99)],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_an_open_loop_at_nobody_has_only_errors(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies"
    bodies.write_text("{}\n")
    load = open_loop(Target("http://127.0.0.1:1/", bodies, {}), rate=500, seconds=0.02)
    assert load.errors == load.requests > 0
    assert load.p99_ms == 0


def with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(body: bytes) -> bytes:
    parts = body[:1], body[1:]
    chunks = b"".join(b"%x;name=value\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("framed", [with_length, in_chunks])
@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_the_client_reads_answers_and_uses_its_connection_again(
    framed: Callable[[bytes], bytes], piece: int
) -> None:
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0]))
                sent = b"HTTP/1.1 429 No\r\nRetry-After: 3\r\n" + framed(body)
                for at in range(0, len(sent), piece):
                    writer.write(sent[at : at + piece])
                    await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(port)
    answers = [await pool.ask(encode(port, "/", body, {})) for body in (b"once", b"more")]
    await pool.close()
    await ended.wait()
    server.close()
    await server.wait_closed()
    assert [(reply.status, reply.body, reply.retry_after) for reply in answers] == [
        (429, b"once", True),
        (429, b"more", True),
    ]
    assert answers[0].port == answers[1].port
