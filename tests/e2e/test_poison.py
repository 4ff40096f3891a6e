"""One poisoned text; `make acceptance SUITE=poison` has it among more."""

from pathlib import Path

from tests.acceptance import poison
from tests.acceptance.places import serve_fragile


async def test_poisoned_text_fails_its_own_request_and_no_other(
    bentoml_home: Path, tmp_path: Path
) -> None:
    with serve_fragile(bentoml_home, tmp_path) as server:
        outcome = await poison.send_poison(server, 300)

    assert outcome.statuses == {200: outcome.requests - 1, 500: 1}
    assert (outcome.code, outcome.with_poison) == ("inference_failed", True)
    assert outcome.wrong == 0
    # It was not alone from the start.
    assert outcome.batch_failures > 1
    assert outcome.logged_texts == []
