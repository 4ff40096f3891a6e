"""Distances to the reference, and that the reference's own are like those of any later text."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from kaiten.errors import ModelRejected
from runners.embedding_distance import (
    CENTROIDS_FILE,
    compute_centroids,
    measure_distances,
    measure_distances_within,
    read_centroids,
    serialize_centroids,
)

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
LABELS, WIDTH = 14, 48
EMBEDDINGS = np.array([[3, 0], [0, 2], [1, 1], [5, 0]], dtype=np.float32)
ANSWERED = np.array([2, 7, 2, 2])


class World:
    """Embeddings around one place for each label, at lengths that mean nothing."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._places = self._random.normal(size=(LABELS, WIDTH))

    def draw(self, per_label: int) -> tuple[Floats, Labels]:
        labels = np.repeat(np.arange(LABELS), per_label)
        around = self._places[labels] + self._random.normal(size=(len(labels), WIDTH))
        lengths = self._random.uniform(0.5, 20, size=(len(labels), 1))
        return (around * lengths).astype(np.float32), labels


def test_centroid_is_the_mean_direction_of_each_label_that_occurs() -> None:
    half = np.sqrt(0.5)
    expected = [[(1 + half + 1) / 3, half / 3], [0, 1]]
    centroids = compute_centroids(EMBEDDINGS, ANSWERED)
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(centroids, expected, atol=1e-6)


def test_distance_is_that_to_the_nearest_whatever_the_length() -> None:
    centroids = np.array([[1, 0], [0, 0.5]], dtype=np.float32)
    distances = measure_distances(
        np.array([[7, 0], [0, 0.1], [-1, 0]], dtype=np.float32), centroids
    )
    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, [0, 0.5, np.sqrt(1.25)], atol=1e-3)


def test_row_of_the_reference_is_measured_without_itself() -> None:
    distances = measure_distances_within(EMBEDDINGS, ANSWERED)
    for row in range(len(EMBEDDINGS)):
        other_rows = np.arange(len(EMBEDDINGS)) != row
        without = compute_centroids(EMBEDDINGS[other_rows], ANSWERED[other_rows])
        (expected,) = measure_distances(EMBEDDINGS[row : row + 1], without)
        assert distances[row] == pytest.approx(expected, abs=1e-3)
    # The one of its label is as far as the nearest of another.
    assert distances[1] > 0.5


def test_row_that_has_no_other_has_no_distance() -> None:
    assert np.isnan(measure_distances_within(EMBEDDINGS[:1], ANSWERED[:1])).all()


@pytest.mark.parametrize("seed", range(5))
def test_distances_without_itself_are_those_of_fresh_texts(seed: int) -> None:
    world = World(seed)
    embeddings, labels = world.draw(17)
    centroids = compute_centroids(embeddings, labels)
    fresh = measure_distances(world.draw(400)[0], centroids)
    assert ks_2samp(measure_distances_within(embeddings, labels), fresh).pvalue > 0.01
    # Each row has pulled its centroid towards itself, which would look like drift.
    assert ks_2samp(measure_distances(embeddings, centroids), fresh).pvalue < 1e-6


def test_other_texts_are_further() -> None:
    world, other = World(1), World(2)
    embeddings, labels = world.draw(40)
    distances = measure_distances(other.draw(40)[0], compute_centroids(embeddings, labels))
    assert np.median(distances) > np.quantile(measure_distances_within(embeddings, labels), 0.99)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    centroids = compute_centroids(*World(1).draw(3))
    (tmp_path / CENTROIDS_FILE).write_bytes(serialize_centroids(centroids))
    stored_centroids = read_centroids(tmp_path)
    assert stored_centroids is not None
    np.testing.assert_array_equal(stored_centroids, centroids)


def test_folder_without_centroids_has_none(tmp_path: Path) -> None:
    assert read_centroids(tmp_path) is None


def serialize_array(array: Floats) -> bytes:
    """Return an array by itself, as numpy writes it."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        serialize_array(np.eye(3, dtype=np.float32)),
        np.array([{"a": 1}], dtype=object).dumps(),
        serialize_centroids(np.eye(3, dtype=np.float32))[:-40],
        serialize_centroids(np.ones(3, dtype=np.float32)),
        serialize_centroids(np.ones((0, 3), dtype=np.float32)),
        serialize_centroids(np.full((2, 3), np.nan, dtype=np.float32)),
    ],
    ids=["empty", "text", "an array", "a pickle", "cut off", "one row", "no row", "no numbers"],
)
def test_broken_centroids_are_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CENTROIDS_FILE).write_bytes(content)
    with pytest.raises(ModelRejected, match=r"centroids.npz: .* Validate the version again"):
        read_centroids(tmp_path)
