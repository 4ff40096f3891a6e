import numpy as np
import pytest

from runners.engines.base import PadSide, TokenBatch


@pytest.mark.parametrize(
    ("side", "ids", "types", "mask"),
    [
        ("right", [[2, 5, 3], [2, 3, 9]], [[0, 1, 1], [0, 1, 4]], [[1, 1, 1], [1, 1, 0]]),
        ("left", [[2, 5, 3], [9, 2, 3]], [[0, 1, 1], [4, 0, 1]], [[1, 1, 1], [0, 1, 1]]),
    ],
)
def test_shorter_texts_are_padded_on_their_side(
    side: PadSide, ids: list[list[int]], types: list[list[int]], mask: list[list[int]]
) -> None:
    inputs = {"input_ids": [[2, 5, 3], [2, 3]], "token_type_ids": [[0, 1, 1], [0, 1]]}
    batch = TokenBatch(inputs, {"input_ids": 9, "token_type_ids": 4}, side)
    arrays = batch.arrays()
    np.testing.assert_array_equal(arrays["input_ids"], ids)
    np.testing.assert_array_equal(arrays["token_type_ids"], types)
    np.testing.assert_array_equal(arrays["attention_mask"], mask)
    assert not batch.is_plain


def test_short_batch_is_padded_to_the_least_length() -> None:
    batch = TokenBatch({"input_ids": [[1, 2], [3]]}, {"input_ids": 0}, min_length=4)
    np.testing.assert_array_equal(batch.arrays()["input_ids"], [[1, 2, 0, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(batch.arrays()["attention_mask"].sum(axis=1), [2, 1])
    assert not batch.is_plain


def test_selected_texts_come_in_their_order() -> None:
    batch = TokenBatch.of_ids([[1], [2, 2], [3]], 0)
    assert batch.is_plain
    selection = batch.select([2, 0])
    assert selection.token_ids == [[3], [1]]
    assert len(selection) == 2
