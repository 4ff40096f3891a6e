import hashlib
import hmac
import re

import pytest

from kaiten.pseudonyms import Pseudonyms, key_setting, pseudonym_key
from kaiten.settings.models import LoggingSettings

SECRET = "8f14e45fceea167a5a36dedd4bea2543"
OTHER = "c9f0f895fb98ab9159f51fd0297e236d"


def test_a_pseudonym_is_the_start_of_an_hmac_of_the_identity() -> None:
    expected = hmac.new(b"key", b"kaiten|alice", hashlib.sha256).hexdigest()[:16]
    assert Pseudonyms(b"key").of("kaiten|alice") == expected


def test_one_subject_has_one_pseudonym_and_two_have_two() -> None:
    key = pseudonym_key(LoggingSettings(), SECRET)
    assert key is not None
    first, same, other = (
        Pseudonyms(key).of(subject) for subject in ("i|alice", "i|alice", "j|alice")
    )
    assert first == same != other


@pytest.mark.parametrize("identity", ["", "|", "ü", "\ud800", "x" * 10_000])
def test_whatever_a_subject_is_its_pseudonym_is_16_digits(identity: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", Pseudonyms(b"key").of(identity))


def test_key_depends_on_the_secret_only() -> None:
    assert pseudonym_key(LoggingSettings(), SECRET) == pseudonym_key(LoggingSettings(), SECRET)
    assert pseudonym_key(LoggingSettings(), SECRET) != pseudonym_key(LoggingSettings(), OTHER)


def test_the_key_does_not_tell_the_secret() -> None:
    key = pseudonym_key(LoggingSettings(), SECRET)
    assert key is not None
    assert len(key) == 32
    assert SECRET.encode() not in key


def test_a_key_that_is_set_outlives_the_secret() -> None:
    settings = LoggingSettings.model_validate({"pseudonym_key": OTHER})
    assert pseudonym_key(settings, SECRET) == pseudonym_key(settings, None) == OTHER.encode()


def test_without_a_secret_nothing_is_shared() -> None:
    assert pseudonym_key(LoggingSettings(), None) is None


def test_a_key_may_be_given_by_its_bytes() -> None:
    key = pseudonym_key(LoggingSettings(), SECRET)
    assert key is not None
    settings = LoggingSettings.model_validate({"pseudonym_key": key_setting(key)})
    assert pseudonym_key(settings, OTHER) == key
