import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.engines.packing import Grid, Layout, Shape, pack

quickly = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@quickly
@given(
    texts=st.lists(st.lists(st.integers(1, 30_000), min_size=1, max_size=20), max_size=8),
    first=st.integers(0, 3),
)
def test_every_text_lies_where_the_layout_says(texts: list[list[int]], first: int) -> None:
    shape = Shape(tokens=200, texts=10)
    # What an earlier batch left must not be read.
    batch = np.full(shape.size, -1, np.int32)
    pack(texts, shape, first, batch)

    layout, total = Layout(shape), sum(map(len, texts))
    ids, positions, firsts, starts = (
        batch[part] for part in (layout.ids, layout.positions, layout.firsts, layout.starts)
    )
    for index, text in enumerate(texts):
        begin, end = starts[index], starts[index + 1]
        assert firsts[index] == begin
        assert ids[begin:end].tolist() == text
        assert positions[begin:end].tolist() == list(range(first, first + len(text)))
    assert starts[len(texts) :].tolist() == [total] * (shape.texts + 1 - len(texts))
    assert not ids[total:].any()
    assert not positions[total:].any()
    assert not firsts[len(texts) :].any()


@quickly
@given(tokens=st.integers(1, 20_000), texts=st.integers(1, 2000))
def test_grid_covers_all_that_a_batch_may_be(tokens: int, texts: int) -> None:
    grid = Grid.up_to(tokens, texts)
    assert grid.largest.tokens >= tokens
    assert grid.largest.texts == texts
    sizes = [shape.tokens for shape in grid]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes) <= 40


@pytest.mark.parametrize(("tokens", "texts"), [(1, 1), (64, 3), (65, 1), (500, 40), (1000, 64)])
def test_the_smallest_shape_with_room_is_taken(tokens: int, texts: int) -> None:
    shapes = [*Grid.up_to(1000, 64)]
    smallest = Grid.up_to(1000, 64).fit(tokens, texts)
    roomy = [shape for shape in shapes if shape.tokens >= tokens and shape.texts >= texts]
    assert smallest == min(roomy, key=lambda shape: shape.tokens)


def test_a_batch_wastes_no_more_than_a_third_of_a_shape() -> None:
    grid = Grid.up_to(16_384, 1024)
    waste = [1 - tokens / grid.fit(tokens, 1).tokens for tokens in range(64, 16_385)]
    assert max(waste) < 1 / 2
    assert sum(waste) / len(waste) < 0.13


def test_shape_beyond_the_grid_is_rejected() -> None:
    with pytest.raises(ValueError, match="65 texts of 10 tokens"):
        Grid.up_to(1000, 64).fit(10, 65)
