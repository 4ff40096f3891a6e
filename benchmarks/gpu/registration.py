"""`python -m benchmarks.gpu.registration FOLDER TAG`: register a model for torch alone.

The export to ONNX, which no CUDA device computes, would take longer than all else of a run.
"""

import sys
from pathlib import Path

from kaiten.model_facts import EngineFacts
from kaiten.settings.models import VersioningSettings
from lifecycle.registration import Submission, register_model
from lifecycle.store import ModelStore
from runners.tasks.text_classification import inspection


def main() -> None:
    folder, tag = sys.argv[1:]
    facts = EngineFacts("torch", "registered for a CUDA device")
    vars(inspection)["export"] = lambda *_, **__: facts
    task = "text-classification"
    name, _, version = tag.partition(":")
    submission = Submission(Path(folder), name, version, task)
    inspect = inspection.inspect
    register_model(
        submission, "benchmark", VersioningSettings(), store=ModelStore(), inspect=inspect
    )


if __name__ == "__main__":
    main()
