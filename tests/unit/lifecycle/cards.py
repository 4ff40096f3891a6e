"""Cards and stored versions for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifecycle.audit_log import Action, AuditLogEvent
from lifecycle.card import EngineCard, ModelCard, sha256
from lifecycle.store import ModelStore, StoredModel


def card(tag: str = "ours:1.0.0", **changes: Any) -> ModelCard:  # noqa: ANN401
    name, _, version = tag.partition(":")
    fields: dict[str, Any] = {
        "name": name,
        "version": version,
        "task": "text-classification",
        "labels": ("no", "yes"),
        "input_schema": {"type": "string"},
        "max_length": 128,
        "architecture": "BertForSequenceClassification",
        "framework_versions": {"torch": "2.11.0", "transformers": "5.17.0"},
        "engine": EngineCard(name="onnx", reason="for a test", versions={"onnxruntime": "1.22.0"}),
        "files": {},
    }
    return ModelCard(**(fields | changes))


def store_model(store: ModelStore, tag: str, folder: Path, weights: str = "weights") -> StoredModel:
    """Register a version of one small file."""
    file = folder / f"{tag.replace(':', '-')}.safetensors"
    file.write_text(f"{weights} of {tag}")
    model_card = card(tag, files={"model.safetensors": sha256(file)})
    with store.audit_log(model_card.name).transaction() as transaction:
        model = store.add(model_card, {"model.safetensors": file})
        event = AuditLogEvent(
            action=Action.REGISTERED, version=model_card.version, who="tester", card=model.digest
        )
        transaction.add(event)
    return model


def save_report(
    store: ModelStore,
    model: StoredModel,
    evidence: Mapping[str, str] | None = None,
    *,
    passed: bool = True,
) -> str:
    """Give a version a report; return its digest."""
    report = f'{{"passed": {passed}, "evidence": {evidence}}}\n'
    digest = model.add_report(report, {"report.html": b"<html>"})
    with store.audit_log(model.card.name).transaction() as transaction:
        transaction.add(
            AuditLogEvent(
                action=Action.VALIDATED,
                version=model.card.version,
                who="tester",
                card=model.digest,
                reason="" if passed else "accuracy is 0.5",
                report=digest,
                passed=passed,
                evidence=dict(evidence or {}),
            )
        )
    return digest
