"""What loading a model once establishes: runners measure it, and lifecycle writes it into cards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The engine that a version was registered for, and the reason for the choice.

    ``max_difference`` is the largest absolute difference between its logits and torch's over
    ``texts`` texts, None if nothing was compared. ``opset`` is the version of the ONNX operators.
    """

    name: str
    reason: str
    texts: int = 0
    max_difference: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    opset: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's properties; ``max_length`` is in tokens.

    ``input_schema`` and ``output_schema`` are JSON schemas of one input and one prediction,
    ``notes`` say what registration changed, and ``packages`` are those that serving the model on a
    CPU needs and that not every model needs.
    """

    labels: Sequence[str]
    max_length: int
    architecture: str
    framework_versions: Mapping[str, str]
    engine: EngineFacts
    input_schema: Mapping[str, Any] = field(default_factory=dict)
    output_schema: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    packages: Sequence[str] = ()
