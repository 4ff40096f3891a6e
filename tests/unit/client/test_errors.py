import pickle

import pytest

import kaiten_client
from kaiten_client import Detail, KaitenError, RateLimited

ERRORS = [
    kind
    for kind in vars(kaiten_client).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_in_one_tree(kind: type[Exception]) -> None:
    assert issubclass(kind, KaitenError)


def test_a_line_tells_all_that_is_known() -> None:
    details = [Detail("inputs.1", "is empty"), Detail("top_k", "is below 1")]
    error = KaitenError("No.", status=422, code="invalid_input", request_id="id", details=details)
    assert str(error) == (
        "No. inputs.1: is empty; top_k: is below 1 (status 422, code invalid_input, request id)"
    )
    assert str(KaitenError("No.")) == "No."


def test_a_process_pool_can_hand_it_back() -> None:
    details = [Detail("inputs.1", "is empty")]
    error = RateLimited("No.", status=429, request_id="id", details=details, retry_after_s=3)
    restored = pickle.loads(pickle.dumps(error))
    assert type(restored) is RateLimited
    assert vars(restored) == vars(error)
    assert str(restored) == str(error)
