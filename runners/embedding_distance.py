"""The distance of an embedding from those of the baseline, one of the features of drift.

Embeddings are compared by their direction: each is scaled to length 1 first. A centroid is the mean
of the scaled embeddings that were predicted as one label, and is not scaled again. A text's
distance is the Euclidean one from its scaled embedding to the nearest centroid, from 0 to 2.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaiten.errors import ModelRejected

# In the folder of a report, beside the profile of its rows.
CENTROIDS_FILE = "centroids.npz"
# numpy raises these for a file that is truncated, or of another kind.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def compute_centroids(embeddings: Floats, labels: Labels) -> Floats:
    """Return the centroid of each label that occurs, in their order, shape (occurring, width).

    ``embeddings`` are of shape (texts, width), ``labels`` the index of each text's, shape (texts,).
    """
    centroids, _, _ = _group_by_label(_normalize(embeddings), labels)
    return centroids


def measure_distances(embeddings: Floats, centroids: Floats) -> Floats:
    """Return the distance of each text from its nearest centroid, shape (texts,)."""
    distances: Floats = _distances_to_centroids(_normalize(embeddings), centroids).min(axis=1)
    return distances


def measure_distances_within(embeddings: Floats, labels: Labels) -> Floats:
    """Return the distance of each text of the baseline from the centroids of the others, (texts,).

    The centroid of a text's own label is computed without the text (leave one out), because the
    text pulls it towards itself, which no later text does. NaN for a text without others.
    """
    scaled = _normalize(embeddings)
    centroids, columns, counts = _group_by_label(scaled, labels)
    distances = _distances_to_centroids(scaled, centroids)
    rows = np.arange(len(scaled))
    # Without x, a mean c of n moves to (n c - x) / (n - 1), which is n / (n - 1) as far from x.
    others = counts[columns] - 1
    alone = others == 0
    distances[rows, columns] *= counts[columns] / np.maximum(others, 1)
    distances[rows[alone], columns[alone]] = np.inf
    nearest: Floats = distances.min(axis=1)
    return np.where(np.isinf(nearest), np.float32(np.nan), nearest)


def serialize_centroids(centroids: Floats) -> bytes:
    """Return the content of CENTROIDS_FILE."""
    content = io.BytesIO()
    np.savez(content, centroids=centroids.astype(np.float32))
    return content.getvalue()


def read_centroids(folder: Path) -> Floats | None:
    """Return the centroids in a report's folder; None if its rows had no embeddings.

    Raises:
        ModelRejected: The file holds no centroids.

    """
    path = folder / CENTROIDS_FILE
    if not path.is_file():
        return None
    try:
        # From memory, because numpy does not close a file that it cannot read.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            centroids = np.asarray(arrays["centroids"])
    except _UNREADABLE as error:
        raise _reject(f"cannot be read: {type(error).__name__}") from None
    if centroids.dtype != np.float32 or centroids.ndim != 2 or not centroids.size:  # noqa: PLR2004
        raise _reject("holds no centroids")
    if not np.isfinite(centroids).all():
        raise _reject("holds infinities or NaN")
    return centroids


def _normalize(embeddings: Floats) -> Floats:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: Floats = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def _group_by_label(scaled: Floats, labels: Labels) -> tuple[Floats, Labels, Labels]:
    """Return the centroids, the index of each text's centroid, and each centroid's texts."""
    _, indices, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), scaled.shape[1]))
    np.add.at(sums, indices, scaled)
    return (sums / counts[:, None]).astype(np.float32), indices, counts


def _distances_to_centroids(scaled: Floats, centroids: Floats) -> Floats:
    """Return the distance from each text to each centroid, shape (texts, centroids)."""
    # A matrix product would wake threads that keep spinning on the lanes' cores.
    products = np.einsum("tw,cw->tc", scaled, centroids)
    squares = (scaled**2).sum(axis=1)[:, None] + (centroids**2).sum(axis=1) - 2 * products
    distances: Floats = np.sqrt(np.maximum(squares, 0))
    return distances


def _reject(reason: str) -> ModelRejected:
    return ModelRejected(CENTROIDS_FILE, reason, "Validate the version again: kaiten validate.")
