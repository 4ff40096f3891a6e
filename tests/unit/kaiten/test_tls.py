from collections.abc import Callable
from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.loader import load_settings
from kaiten.settings.models import TlsSettings
from kaiten.tls import bentoml_ssl, check_tls
from tests.certificates import Authority

# BentoML's defaults.
DEFAULTS: dict[str, object] = {
    "enabled": False,
    "certfile": None,
    "keyfile": None,
    "keyfile_password": None,
    "ca_certs": None,
    "version": 17,
    "cert_reqs": 0,
    "ciphers": "TLSv1",
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def mutual_tls(authority: Authority) -> TlsSettings:
    certificate, key = authority.issue("server")
    return TlsSettings(certificate=certificate, private_key=key, client_ca=authority.file)


def rejection(settings: TlsSettings, in_force: dict[str, object] | None = None) -> tuple[str, str]:
    with pytest.raises(InvalidSettings) as caught:
        check_tls(settings, in_force)
    (detail,) = caught.value.details
    return detail.field, detail.reason


def test_without_a_certificate_there_is_no_tls() -> None:
    assert bentoml_ssl(TlsSettings()) == {"enabled": False}
    check_tls(TlsSettings(), DEFAULTS)


def test_a_client_authority_makes_bentoml_ask_for_certificates(mutual_tls: TlsSettings) -> None:
    served = bentoml_ssl(mutual_tls)
    assert (served["cert_reqs"], served["ca_certs"]) == (2, str(mutual_tls.client_ca))
    check_tls(mutual_tls, DEFAULTS | served)
    plain = bentoml_ssl(mutual_tls.model_copy(update={"client_ca": None}))
    assert "cert_reqs" not in plain
    assert (plain["certfile"], plain["enabled"]) == (str(mutual_tls.certificate), True)


@pytest.mark.parametrize(
    "bentoml_options",
    [
        {"enabled": False},
        {"certfile": "other.pem"},
        {"ciphers": "TLSv1"},
        {"cert_reqs": 0},
        {"cert_reqs": 1},
        {"ca_certs": "other.pem"},
    ],
)
def test_bentoml_settings_cannot_weaken_tls(
    mutual_tls: TlsSettings, bentoml_options: dict[str, object]
) -> None:
    field, reason = rejection(mutual_tls, DEFAULTS | bentoml_ssl(mutual_tls) | bentoml_options)
    assert field == "services.kaiten_service.ssl"
    assert "set tls instead" in reason


@pytest.mark.parametrize(
    "bentoml_options", [{"enabled": True}, {"certfile": "a.pem"}, {"cert_reqs": 2}]
)
def test_tls_in_bentoml_settings_is_rejected(bentoml_options: dict[str, object]) -> None:
    assert rejection(TlsSettings(), DEFAULTS | bentoml_options)[0] == "services.kaiten_service.ssl"


def with_encrypted_key(authority: Authority, tls: TlsSettings) -> TlsSettings:
    certificate, key = authority.issue("locked", password=b"password-4711")
    return tls.model_copy(update={"certificate": certificate, "private_key": key})


BROKEN: dict[str, tuple[Callable[[Authority, TlsSettings], TlsSettings], str, str]] = {
    "another key": (
        lambda authority, tls: tls.model_copy(update={"private_key": authority.issue("other")[1]}),
        "tls.certificate",
        "key values mismatch",
    ),
    "no certificate": (
        lambda authority, tls: tls.model_copy(update={"certificate": tls.private_key}),
        "tls.certificate",
        "a certificate and its key, in PEM",
    ),
    "no file": (
        lambda authority, tls: tls.model_copy(update={"private_key": Path("nowhere.key")}),
        "tls.certificate",
        "No such file",
    ),
    "an encrypted key": (with_encrypted_key, "tls.certificate", "the key is encrypted"),
    "no authority": (
        lambda authority, tls: tls.model_copy(update={"client_ca": tls.private_key}),
        "tls.client_ca",
        "certificates in PEM",
    ),
    "no authority's file": (
        lambda authority, tls: tls.model_copy(update={"client_ca": Path("nowhere.pem")}),
        "tls.client_ca",
        "No such file",
    ),
}


@pytest.mark.parametrize(("broken", "field", "message"), BROKEN.values(), ids=BROKEN)
def test_what_tls_could_not_be_served_with_is_refused_by_name(
    authority: Authority,
    mutual_tls: TlsSettings,
    broken: Callable[[Authority, TlsSettings], TlsSettings],
    field: str,
    message: str,
) -> None:
    rejected_field, reason = rejection(broken(authority, mutual_tls))
    assert rejected_field == field
    assert message in reason
    assert "password-4711" not in reason


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["CERTIFICATE"], "belong together"),
        (["PRIVATE_KEY"], "belong together"),
        (["CLIENT_CA"], "no client certificate would be checked"),
    ],
)
def test_incomplete_tls_settings_are_rejected(
    names: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(f"KAITEN_TLS__{name}", "file.pem")
    with pytest.raises(InvalidSettings, match=message):
        load_settings()
