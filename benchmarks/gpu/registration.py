"""`python -m benchmarks.gpu.registration FOLDER TAG`: register a model for torch alone.

The export to ONNX, which no CUDA device computes, would take longer than all else of a run.
"""

import sys
from pathlib import Path

from lifecycle.registration import register
from lifecycle.store import ModelStore
from runners.tasks.base import EngineFacts
from runners.tasks.text_classification import inspection


def main() -> None:
    folder, tag = sys.argv[1:]
    facts = EngineFacts("torch", "registered for a CUDA device")
    vars(inspection)["export"] = lambda *_: facts
    task = "text-classification"
    register(Path(folder), tag, task, store=ModelStore(), inspect=inspection.inspect)


if __name__ == "__main__":
    main()
