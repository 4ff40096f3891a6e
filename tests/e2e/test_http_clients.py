"""Real clients on a plain connection, in short: the long form is the field suite's."""

import asyncio
import shutil
from pathlib import Path

import httpx
import pytest

from tests.acceptance.field.http_clients import (
    CLIENTS,
    Program,
    ask_all,
    count_outcomes,
    requests_of,
)
from tests.servers import Server

COUNT = 24


@pytest.mark.parametrize("program", CLIENTS, ids=lambda program: program.name)
def test_every_request_is_answered_with_its_own_answer(
    server: Server, token: str, tmp_path: Path, program: Program
) -> None:
    if shutil.which(program.needs) is None:
        pytest.skip(f"{program.needs} is not installed; Debian's package is {program.package}")
    if program.needs == "npm":
        pytest.skip("npm would download undici; the field suite does")
    with server.client(token) as client:
        labels = {
            text: client.post("/predict", json={"inputs": [text]}).json()["predictions"][0]["label"]
            for text in ("Where is my parcel?", "I forgot my password", "Cancel my order")
        }
    requests = requests_of(labels, COUNT)
    port = httpx.URL(server.url).port or 0
    printed = asyncio.run(ask_all(program, port, token, requests, tmp_path / "client"))
    assert count_outcomes(requests, printed) == {"right": COUNT}
