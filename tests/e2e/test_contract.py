"""Some hundred requests made of each document; `make acceptance SUITE=contract` sends 10,000."""

from pathlib import Path

import pytest

from gateway.api_versions import DOCUMENTS
from tests.acceptance.contract import run_schemathesis
from tests.servers import Server


@pytest.mark.parametrize("version", DOCUMENTS)
def test_no_answer_violates_its_document(server: Server, version: str, tmp_path: Path) -> None:
    outcome = run_schemathesis(server, version, 4, tmp_path / version)

    assert outcome.violations == []
    assert outcome.server_errors == 0
    assert outcome.cases > 150
    assert set(outcome.unknown_fields) == {"422"}
    assert outcome.left_out == []
