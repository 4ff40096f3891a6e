"""Signatures that hold, and what makes them not hold, by the real model-signing."""

import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from cli import app
from kaiten.errors import InvalidSettings, ModelRejected
from kaiten.settings.environment import ROOT
from kaiten.settings.models import SignatureSettings
from lifecycle.card import SIGNATURE_FILE
from lifecycle.signatures import sign_version, verify_version
from lifecycle.store import ModelStore
from tests.unit.lifecycle.cards import save_report, store_model

PYTHON = ROOT / ".kaiten/model-signing/bin/python"
needs_model_signing = pytest.mark.skipif(
    not PYTHON.exists(), reason="model-signing has no environment: make signatures"
)


def keys(folder: Path, name: str, password: bytes | None = None) -> SignatureSettings:
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(pem, pkcs8, encryption))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, spki))
    secret = SecretStr(password.decode()) if password else None
    return SignatureSettings(private_key=private, public_key=public, password=secret, python=PYTHON)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    (folder / "onnx").mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    (folder / "onnx" / "model.onnx").write_text("network")
    return folder


@needs_model_signing
@pytest.mark.parametrize("password", [None, b"a long password of ours"])
def test_signature_holds_until_a_byte_changes(
    password: bytes | None, folder: Path, tmp_path: Path
) -> None:
    settings = keys(tmp_path, "ours", password)
    sign_version(folder, settings)
    verify_version(folder, "ours:1.0.0", settings)
    (folder / "onnx" / "model.onnx").write_text("Network")
    with pytest.raises(
        ModelRejected, match=r"model\.sig: is not valid for ours:1\.0\.0: .*onnx/model\.onnx"
    ):
        verify_version(folder, "ours:1.0.0", settings)


@needs_model_signing
def test_added_file_is_refused_and_a_report_is_not(folder: Path, tmp_path: Path) -> None:
    settings = keys(tmp_path, "ours")
    sign_version(folder, settings)
    (folder / "reports").mkdir()
    (folder / "reports" / "report.json").write_text("{}")
    (folder / "model.yaml").write_text("BentoML's")
    verify_version(folder, "ours:1.0.0", settings)
    (folder / "added.json").write_text("{}")
    with pytest.raises(ModelRejected, match="is not valid"):
        verify_version(folder, "ours:1.0.0", settings)


@needs_model_signing
def test_another_key_is_refused(folder: Path, tmp_path: Path) -> None:
    sign_version(folder, keys(tmp_path, "others"))
    with pytest.raises(ModelRejected, match=r"is not valid.*Key mismatch"):
        verify_version(folder, "ours:1.0.0", keys(tmp_path, "ours"))


@needs_model_signing
@pytest.mark.parametrize("spoilt", [b"", b"{}", b"no JSON"])
def test_spoilt_signature_is_refused(spoilt: bytes, folder: Path, tmp_path: Path) -> None:
    settings = keys(tmp_path, "ours")
    sign_version(folder, settings)
    (folder / SIGNATURE_FILE).write_bytes(spoilt)
    with pytest.raises(ModelRejected, match="is not valid"):
        verify_version(folder, "ours:1.0.0", settings)


def test_unsigned_version_is_refused_where_signatures_are_required(
    folder: Path, tmp_path: Path
) -> None:
    settings = keys(tmp_path, "ours")
    verify_version(folder, "ours:1.0.0", settings)
    required = settings.model_copy(update={"required": True})
    with pytest.raises(ModelRejected, match=r"model\.sig: is missing: ours:1\.0\.0 is not signed"):
        verify_version(folder, "ours:1.0.0", required)


def test_without_keys_nothing_is_signed(folder: Path) -> None:
    sign_version(folder, SignatureSettings())
    verify_version(folder, "ours:1.0.0", SignatureSettings())
    assert not (folder / SIGNATURE_FILE).exists()


def test_required_needs_a_key_to_check_with() -> None:
    with pytest.raises(ValidationError, match="without public_key"):
        SignatureSettings(required=True)


@needs_model_signing
def test_key_that_is_none_is_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "no.key").write_text("nothing")
    (folder / SIGNATURE_FILE).write_text("{}")
    key = tmp_path / "no.key"
    with pytest.raises(InvalidSettings, match=r"signatures\.private_key"):
        sign_version(folder, SignatureSettings(private_key=key, python=PYTHON))
    with pytest.raises(InvalidSettings, match=r"signatures\.public_key"):
        verify_version(folder, "ours:1.0.0", SignatureSettings(public_key=key, python=PYTHON))


@needs_model_signing
def test_store_signs_what_it_takes_and_checks_what_it_gives(
    model_store: Path, tmp_path: Path
) -> None:
    settings = keys(tmp_path, "ours").model_copy(update={"required": True})
    store = ModelStore(settings)
    model = store_model(store, "ours:1.0.0", tmp_path)
    save_report(store, model)
    assert (model.folder / SIGNATURE_FILE).is_file()
    assert store.get("ours:1.0.0").card == model.card
    (model.folder / SIGNATURE_FILE).unlink()
    with pytest.raises(ModelRejected, match="is not signed"):
        store.get("ours:1.0.0")


@needs_model_signing
def test_changed_password_is_reported_and_nothing_is_half_signed(
    folder: Path, tmp_path: Path
) -> None:
    settings = keys(tmp_path, "ours", b"a long password of ours")
    wrong = settings.model_copy(update={"password": SecretStr("another")})
    with pytest.raises(InvalidSettings, match=r"signatures\.private_key") as caught:
        sign_version(folder, wrong)
    assert "another" not in caught.value.message
    assert not (folder / SIGNATURE_FILE).exists()


@needs_model_signing
def test_refused_key_leaves_no_version(model_store: Path, tmp_path: Path) -> None:
    settings = keys(tmp_path, "ours")
    assert settings.private_key
    settings.private_key.write_text("spoilt")
    with pytest.raises(InvalidSettings, match=r"signatures\.private_key"):
        store_model(ModelStore(settings), "ours:1.0.0", tmp_path)
    assert "ours:1.0.0" not in ModelStore()
    store_model(ModelStore(), "ours:1.0.0", tmp_path)


def test_python_without_model_signing_is_reported(folder: Path, tmp_path: Path) -> None:
    for python in (Path(sys.executable), tmp_path / "none"):
        settings = SignatureSettings(private_key=tmp_path / "any.key", python=python)
        with pytest.raises(InvalidSettings, match=r"signatures\.python: .*make signatures"):
            sign_version(folder, settings)


def test_key_needs_a_python() -> None:
    with pytest.raises(ValidationError, match="without python"):
        SignatureSettings(public_key=Path("ours.pub"))


@needs_model_signing
def test_command_signs_what_is_there_already(
    model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = keys(tmp_path, "ours")
    model = store_model(ModelStore(), "ours:1.0.0", tmp_path)
    monkeypatch.setenv("KAITEN_SIGNATURES__PYTHON", str(PYTHON))
    monkeypatch.setenv("KAITEN_SIGNATURES__PRIVATE_KEY", str(settings.private_key))
    result = CliRunner().invoke(app, ["model", "sign", "ours:1.0.0"])
    assert result.exit_code == 0, result.output
    verify_version(model.folder, "ours:1.0.0", settings.model_copy(update={"required": True}))


@needs_model_signing
def test_what_was_not_registered_here_is_not_signed(model_store: Path, tmp_path: Path) -> None:
    store = ModelStore(keys(tmp_path, "ours"))
    store_model(ModelStore(), "ours:1.0.0", tmp_path)
    for file in (model_store / "kaiten").iterdir():
        file.unlink()
    with pytest.raises(ModelRejected, match="is in no audit log here"):
        store.sign("ours:1.0.0")


@needs_model_signing
def test_signature_that_does_not_hold_is_replaced_only_where_that_is_meant(
    model_store: Path, tmp_path: Path
) -> None:
    store_model(ModelStore(keys(tmp_path, "former")), "ours:1.0.0", tmp_path)
    store = ModelStore(keys(tmp_path, "ours"))
    with pytest.raises(ModelRejected, match="Key mismatch"):
        store.sign("ours:1.0.0")
    store.sign("ours:1.0.0", force=True)
    assert store.get("ours:1.0.0").card.version == "1.0.0"


@needs_model_signing
def test_what_would_not_load_is_not_taken_in(model_store: Path, tmp_path: Path) -> None:
    our_keys, other_keys = keys(tmp_path, "ours"), keys(tmp_path, "others")
    mixed = our_keys.model_copy(update={"public_key": other_keys.public_key})
    forgotten = our_keys.model_copy(update={"private_key": None, "required": True})
    for settings, message in ((mixed, "Key mismatch"), (forgotten, "is not signed")):
        with pytest.raises(ModelRejected, match=message):
            store_model(ModelStore(settings), "ours:1.0.0", tmp_path)
        assert "ours:1.0.0" not in ModelStore()


def test_command_without_a_key_says_so(model_store: Path) -> None:
    result = CliRunner().invoke(app, ["model", "sign", "ours:1.0.0"])
    assert isinstance(result.exception, InvalidSettings)
    assert "signatures.private_key: is not set" in result.exception.message
