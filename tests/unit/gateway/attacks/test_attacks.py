"""Every attack is refused, and gets in where its check is off; others notice none of them."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from gateway.auth.credentials import Credentials, new_api_key
from tests.unit.gateway.attacks import replays, tokens, wire
from tests.unit.gateway.attacks.attack import Attack, Change, off
from tests.unit.gateway.attacks.replays import THREE
from tests.unit.gateway.attacks.stand import LOGIN, Defences, Sent, Stand
from tests.unit.gateway.attacks.tokens import issuer_token, own_token, request_with
from tests.unit.gateway.attacks.wire import bare, good
from tests.unit.gateway.house import CANARY, SECRET, TAG, V1, V2, Json, error_of

GROUPS = (
    *(tokens.SIGNATURES, tokens.HEADERS, tokens.CLAIMS),
    *(wire.PATHS, wire.BESIDE_THE_PAGE, wire.METHODS, wire.EXPOSED, wire.HEADERS, wire.BODIES),
    replays.REPLAYS,
)
ATTACKS = {name: attack for group in GROUPS for name, attack in group.items()}
SEVERAL = {name: attack for name, attack in ATTACKS.items() if len(attack.without) > 1}
A_MONTH = timedelta(days=30)
END = int((datetime.now(UTC) + A_MONTH).timestamp())
KEY_ID, KEY, KEY_RECORD = new_api_key("job", ("predict",), datetime.now(UTC) + A_MONTH)
LASTS: Json = {"exp": END, "jti": "valid"}
KNOWN_TOKEN = own_token(sub="bob", **LASTS)


def with_changes(defences: Defences, *changes: Change | None) -> Defences:
    for change in changes:
        defences = change(defences) if change else defences
    return defences


def stand_of(attack: Attack, *without: Change) -> Stand:
    """Return the stand of an attack, without these checks."""
    return stand_with_key(with_changes(Defences(), attack.stand_change, *without))


def stand_with_key(defences: Defences) -> Stand:
    keys = {KEY_ID: KEY_RECORD, **defences.credentials.api_keys}
    credentials = defences.credentials.model_copy(update={"api_keys": keys})
    return Stand(with_changes(defences, off(credentials=credentials)))


async def attempt(stand: Stand, attack: Attack, request: Sent) -> httpx.Response:
    if attack.before is not None:
        await attack.before(stand, request)
    return await stand.answer(request)


def refusal_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, error_of(answer)["code"]


def secrets_of(request: Sent) -> list[str]:
    """Return what the answer must not hold: credentials, each part of a token, and the texts."""
    words = [
        part
        for name, value in request.headers
        if name in {"Authorization", "X-API-Key"} and isinstance(value, str)
        for part in value.removeprefix("Bearer ").split(".")
        if len(part) > 8
    ]
    return [*words, CANARY, SECRET, LOGIN, "evil.example"]


def test_there_are_enough_and_none_has_anothers_name() -> None:
    assert len(ATTACKS) == sum(len(group) for group in GROUPS) > 150


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=[*ATTACKS])
async def test_an_attack_is_refused_without_a_hint(attack: Attack) -> None:
    request = attack.sent()
    answer = await attempt(stand_of(attack), attack, request)
    assert refusal_of(answer) == attack.refused
    answer_text = answer.text + str(answer.headers.raw)
    assert [word for word in secrets_of(request) if word in answer_text] == []
    if answer.status_code == 401:
        error = error_of(answer)
        assert error["message"] in {
            "One credential is required; send Authorization: Bearer TOKEN or X-API-Key: KEY.",
            "The bearer token is not valid; obtain a new one.",
            "The API key is not valid; obtain a new one.",
        }
        assert error["details"] == []


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=[*ATTACKS])
async def test_the_same_bytes_get_in_where_the_check_is_off(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = attack.sent()
    assert refusal_of(await attempt(stand_of(attack), attack, request)) == attack.refused
    without = stand_of(attack, *attack.without)
    for name, instead in without.defences.libraries.items():
        monkeypatch.setattr(name, instead)
    answer = await attempt(without, attack, request)
    assert answer.status_code == 200
    # The model has answered, or the page that is not for everybody.
    assert (TAG in answer.text) == (request.path in {V1, V2})


@pytest.mark.parametrize("attack", SEVERAL.values(), ids=[*SEVERAL])
async def test_of_several_checks_each_alone_keeps_it_out(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for single_change in attack.without:
        without = stand_of(
            attack, *(change for change in attack.without if change is not single_change)
        )
        with monkeypatch.context() as patched:
            for name, instead in without.defences.libraries.items():
                patched.setattr(name, instead)
            answer = await attempt(without, attack, attack.sent())
        assert answer.status_code in range(400, 500)
        assert error_of(answer)


def valid_requests() -> list[Sent]:
    """Return good requests: known tokens and fresh ones, keys, and odd but valid ones."""
    fresh, scheme = own_token(sub="carol", **LASTS), f"bEaReR {own_token(sub='erin', **LASTS)}"
    login = issuer_token("ES256#stays", kid="stays", sub="dave", **LASTS)
    return [
        request_with(KNOWN_TOKEN),
        request_with(fresh),
        request_with(login),
        bare(("x-api-KEY", KEY)),
        bare(("AUTHORIZATION", scheme)),
        request_with(own_token({"typ": "at+jwt"}, sub="frank", aud=["kaiten", "others"], **LASTS)),
    ]


async def test_valid_traffic_beside_all_attacks_is_answered() -> None:
    shared = stand_with_key(Defences())
    stands = [
        (
            shared if attack.stand_change is None and attack.before is None else stand_of(attack),
            attack,
        )
        for attack in ATTACKS.values()
    ]
    assert sum(stand is shared for stand, _ in stands) > 120
    attacks, answers = [], []
    for stand, attack in stands:
        answers += [asyncio.create_task(stand.answer(request)) for request in valid_requests()[:3]]
        attacks.append(asyncio.create_task(attempt(stand, attack, attack.sent())))
        answers += [asyncio.create_task(stand.answer(request)) for request in valid_requests()[3:]]
    # And callers that come when all is over.
    refusals = await asyncio.gather(*attacks)
    answers += [asyncio.create_task(stand.answer(valid_requests()[1])) for stand, _ in stands]
    assert [answer.status_code for answer in await asyncio.gather(*answers)] == [200] * len(answers)
    assert [refusal_of(answer) for answer in refusals] == [
        attack.refused for attack in ATTACKS.values()
    ]


@pytest.mark.parametrize("subject", [CANARY.upper(), f"{CANARY}\u200b", f" {CANARY}"])
async def test_a_subject_is_its_characters_and_who_writes_it_is_its_issuer(subject: str) -> None:
    # Only the issuer knows whether two spellings are one caller: each has its
    # own limits, and none uses up the other's.
    stand = stand_with_key(with_changes(Defences(), THREE))
    statuses = [(await stand.answer(request_with(own_token()))).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert (await stand.answer(request_with(own_token(sub=subject)))).status_code == 200


async def test_of_a_key_that_comes_twice_the_last_is_checked_and_answered() -> None:
    body = b'{"inputs": ["%s"], "inputs": ["billing"]}' % (b"x" * 1000)
    answer = await stand_with_key(Defences()).answer(good(body=body, path=V2))
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 1
    assert answer.json()["predictions"][0]["label"] == "billing"


async def test_revoking_one_revokes_no_other() -> None:
    revoked = Credentials(revoked_subjects={f"kaiten|{CANARY}": 2**40})
    stand = stand_with_key(with_changes(Defences(), off(credentials=revoked)))
    assert (await stand.answer(request_with(own_token()))).status_code == 401
    assert {(await stand.answer(request)).status_code for request in valid_requests()} == {200}
