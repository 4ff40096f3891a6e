"""The page of a report: its confusion matrix can be read, however many labels there are."""

import re
from datetime import UTC, datetime

import numpy as np
import pytest

from lifecycle.evaluate.measures import measure
from lifecycle.evaluate.page import render
from lifecycle.evaluate.report import Cost, DataSummary, ValidationReport

POINTS_PER_INCH = 72
# The size of a label's name in the matrix, in points.
FONT_SIZE = 7


def page_of(labels: list[str]) -> str:
    """Return the page of a version that takes every tenth label for the next one."""
    count = len(labels)
    correct = np.repeat(np.arange(count), 3)
    predicted = np.where(correct % 10 == 0, (correct + 1) % count, correct)
    scores = np.full((len(correct), count), 0.1 / count, dtype=np.float32)
    scores[np.arange(len(correct)), predicted] = 0.9
    report = ValidationReport(
        tag="ours:1.0.0",
        card="c" * 64,
        at=datetime(2026, 11, 1, tzinfo=UTC),
        versions={},
        data=DataSummary(file="rows.csv", digest="d" * 64, rows=len(correct)),
        measures=measure(correct, scores, labels),
        cost=Cost(device="cpu", latency_p50_ms=1, latency_p99_ms=2, memory_mib=100, size_mib=10),
        checks=[],
    )
    return render(report)


def matrix_of(page: str) -> str:
    (matrix,) = re.findall(r'<div class="wide">(<svg.*?</svg>)', page, re.DOTALL)
    return str(matrix)


def names_in(matrix: str, labels: list[str]) -> list[str]:
    """Return the labels that name a row and a column."""
    return [label for label in labels if matrix.count(f">{label}</text>") == 2]


@pytest.mark.parametrize("count", [2, 20, 77, 100])
def test_every_label_has_a_row_as_high_as_its_name(count: int) -> None:
    labels = [f"label_{number:03}" for number in range(count)]
    matrix = matrix_of(page_of(labels))
    assert names_in(matrix, labels) == labels
    # The rows' names stand one below the other.
    heights = [float(y) for y in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>label_', matrix)]
    rows = sorted(heights)[-count:]
    assert min(np.diff(rows)) >= FONT_SIZE


def test_of_too_many_labels_those_with_the_most_mistakes_are_drawn() -> None:
    labels = [f"label_{number:03}" for number in range(300)]
    matrix = matrix_of(page_of(labels))
    assert "the 60 of 300 labels with the most mistakes" in matrix
    drawn = names_in(matrix, labels)
    assert len(drawn) == 60
    assert {f"label_{number:03}" for number in range(0, 300, 10)} <= {*drawn}


def test_a_matrix_that_is_wider_than_the_page_scrolls_and_does_not_shrink() -> None:
    page = page_of([f"label_{number}" for number in range(100)])
    assert ".wide { overflow-x: auto }" in page
    width = float(re.findall(r'width="([\d.]+)pt"', matrix_of(page))[0])
    assert width > 100 * FONT_SIZE + POINTS_PER_INCH
