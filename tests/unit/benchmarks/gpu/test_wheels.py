"""The wheels for a GPU machine, and their installation there."""

import subprocess
import zipfile
from pathlib import Path

from benchmarks.gpu import wheels


def test_all_that_serving_imports_is_carried_but_what_the_machine_has() -> None:
    carried = {line.partition("==")[0].lower() for line in wheels.package_pins()}
    assert {"bentoml", "starlette", "pydantic", "pydantic-core", "whylogs", "pytest"} <= carried
    assert not carried & {"torch", "transformers", "numpy", "uv", "huggingface-hub"}


def test_wheels_come_before_the_machines_own_packages(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "FOUND = True")
        wheel.writestr("pytest.py", "FOUND = True")
    wheels.install(tmp_path, environment := tmp_path / "environment")
    # The last is found where the tests themselves find it.
    program = "import carried, pytest, numpy; assert carried.FOUND and pytest.FOUND"
    subprocess.run([str(environment / "bin" / "python"), "-c", program], check=True)
