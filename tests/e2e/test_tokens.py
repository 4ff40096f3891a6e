"""Tokens of an issuer that rotates, API keys and revocation, over two workers and a real Redis."""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import httpx
import pytest

from kaiten.settings.models import AuthSettings
from tests.issuer import Issuer, issuing
from tests.redis_server import RedisServer, redis_server
from tests.servers import BIN, TLS, Server, environment, serving, until_all_ready

WORKERS = 2
# Each request has a connection of its own, which either worker takes: all of so many go to one of
# them once in ten million times.
ENOUGH = 24
# The workers reload the revocations several times in so many rounds.
ROUNDS = 200


@dataclass(frozen=True)
class House:
    """A server that takes an issuer's tokens only, and the Redis that it keeps credentials in."""

    server: Server
    issuer: Issuer
    redis: RedisServer

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "kaiten"), *arguments]
        return subprocess.run(
            command, env=self.server.env, check=False, capture_output=True, text=True
        )

    def output_of(self, *arguments: str) -> str:
        result = self.command(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def statuses(self, headers: dict[str, str], count: int = ENOUGH) -> Counter[int]:
        """Return what so many requests come to, by connections of their own."""
        body = {"text": "Where is my parcel?"}
        with httpx.Client(
            headers={**headers, "Connection": "close"}, timeout=60, verify=TLS
        ) as client:
            url = f"{self.server.url}/api/v1/predict"
            return Counter(client.post(url, json=body).status_code for _ in range(count))

    def until_all_are(self, status: int, headers: dict[str, str]) -> None:
        """Ask until both workers answer so; nothing but 200 and 401 is answered on the way."""
        for _ in range(ROUNDS):
            statuses = self.statuses(headers)
            assert set(statuses) <= {200, 401}
            if set(statuses) == {status}:
                return
        raise AssertionError(statuses)


@pytest.fixture(scope="module")
def house(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with redis_server() as redis, issuing() as issuer:
        env = environment(
            bentoml_home,
            tmp_path_factory.mktemp("home"),
            KAITEN_AUTH__ISSUERS=json.dumps([issuer.settings()]),
            KAITEN_AUTH__JWKS__MIN_REFRESH_INTERVAL_S="1",
            KAITEN_AUTH__CREDENTIALS_POLL_S="0.1",
            KAITEN_STATE__REDIS_URL=redis.url,
            BENTOML_CONFIG_OPTIONS=f"services.kaiten_service.workers={WORKERS}",
        )
        with serving(env) as server:
            server.process.wait_for("Completed async startup hook", count=WORKERS)
            until_all_ready(server.url)
            yield House(server, issuer, redis)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_first_token_of_a_new_key_is_taken_by_both_workers(house: House) -> None:
    for _ in range(2):
        assert house.statuses(bearer(house.issuer.token())) == {200: ENOUGH}
        house.issuer.rotate()
    assert house.statuses(bearer(house.issuer.token())) == {200: ENOUGH}


def test_tokens_of_others_are_refused(house: House) -> None:
    stranger = Issuer(family="strangers")
    for token in (
        stranger.token(),
        # Signed with another key, under the id of a published one.
        stranger.token(iss=house.issuer.name),
        house.issuer.token(aud="others"),
        house.issuer.token(exp=1),
    ):
        assert house.statuses(bearer(token), 4) == {401: 4}


def test_none_are_made_here(house: House) -> None:
    result = house.command("token", "create", "--subject", "alice", "--scope", "predict")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "none are made here" in result.stderr
    assert "set TOKEN to a token of an auth.issuers" in house.server.process.log


def test_api_key_works_until_it_is_revoked(house: House) -> None:
    result = house.command("api-key", "create", "--subject", "job", "--scope", "predict")
    key = {"X-API-Key": result.stdout.strip()}
    assert result.stderr == ""
    audit_log = Path(house.server.env["KAITEN_HOME"]) / "audit.log"
    audit_event = json.loads(audit_log.read_text("utf-8").splitlines()[-1])
    assert (audit_event["event"], audit_event["logger"]) == ("api_key_created", "kaiten.audit")
    house.until_all_are(200, key)
    (key_id,) = json.loads(house.output_of("api-key", "list", "--json"))
    assert key_id == audit_event["key_id"]
    house.output_of("api-key", "revoke", key_id)
    house.until_all_are(401, key)


def test_token_is_revoked_by_its_id_and_others_of_its_subject_hold(house: House) -> None:
    ids = token_hex(8), token_hex(8)
    first, second = (house.issuer.token(jti=token_id) for token_id in ids)
    statuses = house.statuses(bearer(first)) + house.statuses(bearer(second))
    assert statuses == {200: 2 * ENOUGH}
    house.output_of("token", "revoke", ids[0], "--issuer", house.issuer.name)
    house.until_all_are(401, bearer(first))
    assert house.statuses(bearer(second)) == {200: ENOUGH}


def test_subject_loses_what_it_was_issued_and_others_do_not(house: House) -> None:
    old, other = house.issuer.token("bob"), house.issuer.token("carol")
    assert house.statuses(bearer(old)) == {200: ENOUGH}
    house.output_of("revoke", "--subject", "bob", "--issuer", house.issuer.name)
    house.until_all_are(401, bearer(old))
    assert house.statuses(bearer(other)) == {200: ENOUGH}
    # A clock that is ahead by the leeway stands for that time, which is revoked as well.
    time.sleep(1)
    later = house.issuer.token("bob", iat=int(time.time()) + AuthSettings().leeway_s)
    assert house.statuses(bearer(later)) == {200: ENOUGH}


def test_known_keys_hold_while_the_issuer_is_away(house: House) -> None:
    token = house.issuer.token()
    assert house.statuses(bearer(token)) == {200: ENOUGH}
    house.issuer.down()
    assert house.statuses(bearer(house.issuer.token("dave"))) == {200: ENOUGH}
    house.issuer.rotate()
    # The server cannot find out whether the issuer has such a key.
    assert house.statuses(bearer(house.issuer.token()), 1) == {503: 1}
    house.issuer.up()
    assert house.statuses(bearer(house.issuer.token())) == {200: ENOUGH}


def test_what_is_revoked_stays_so_when_redis_is_killed(house: House) -> None:
    revoked, other = house.issuer.token("erin"), house.issuer.token("frank")
    api_key = house.output_of("api-key", "create", "--subject", "job", "--scope", "predict")
    house.output_of("revoke", "--subject", "erin", "--issuer", house.issuer.name)
    house.until_all_are(401, bearer(revoked))
    house.until_all_are(200, {"X-API-Key": api_key})
    house.redis.kill()
    house.server.process.wait_for("credentials_not_read", count=WORKERS)
    assert house.statuses(bearer(revoked)) == {401: ENOUGH}
    assert house.statuses(bearer(other)) == {200: ENOUGH}
    assert house.statuses({"X-API-Key": api_key}) == {200: ENOUGH}
    result = house.command("revoke", "--subject", "frank", "--issuer", house.issuer.name)
    assert result.returncode == 1
    assert "state.redis_url" in result.stderr
    with redis_server(house.redis.port):
        house.server.process.wait_for("credentials_read_again", count=WORKERS)
        # It kept nothing, and the workers did.
        assert house.statuses(bearer(revoked)) == {401: ENOUGH}
        assert len(json.loads(house.output_of("api-key", "list", "--json"))) == 1


def test_nothing_private_was_logged(house: House) -> None:
    log = house.server.process.log
    assert not re.search(r"eyJ|kaiten_[0-9a-f]{16}|alice|frank|erin", log)
