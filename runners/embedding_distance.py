"""How far an embedding is from those of the reference, which drift is told by.

Embeddings are compared by their direction: each is scaled to length 1 first. A centroid is the mean
of the scaled embeddings that were answered with one label, and is not scaled again. A text's
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
# What numpy raises for a file that is cut off, or of another kind.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def centroids_of(embeddings: Floats, labels: Labels) -> Floats:
    """Return the centroid of each label that occurs, in their order, shape (occurring, width).

    ``embeddings`` are of shape (texts, width), ``labels`` the index of each text's, shape (texts,).
    """
    centroids, _, _ = _grouped(_scaled(embeddings), labels)
    return centroids


def distances(embeddings: Floats, centroids: Floats) -> Floats:
    """Return how far each text is from its nearest centroid, shape (texts,)."""
    found: Floats = _to_each(_scaled(embeddings), centroids).min(axis=1)
    return found


def distances_within(embeddings: Floats, labels: Labels) -> Floats:
    """Return how far each text of the reference is from the centroids of the others, (texts,).

    Its own label's centroid is taken without it (leave one out): it pulls that towards itself,
    which no later text does. NaN for a text that has no other.
    """
    scaled = _scaled(embeddings)
    centroids, own, counts = _grouped(scaled, labels)
    found = _to_each(scaled, centroids)
    rows = np.arange(len(scaled))
    # Without x, a mean c of n moves to (n c - x) / (n - 1), which is n / (n - 1) as far from x.
    others = counts[own] - 1
    alone = others == 0
    found[rows, own] *= counts[own] / np.maximum(others, 1)
    found[rows[alone], own[alone]] = np.inf
    nearest: Floats = found.min(axis=1)
    return np.where(np.isinf(nearest), np.float32(np.nan), nearest)


def written(centroids: Floats) -> bytes:
    """Return centroids as the content of CENTROIDS_FILE."""
    content = io.BytesIO()
    np.savez(content, centroids=centroids.astype(np.float32))
    return content.getvalue()


def read(folder: Path) -> Floats | None:
    """Return the centroids of a report's folder; None where its rows had no embeddings.

    ModelRejected for a file that holds something else.
    """
    path = folder / CENTROIDS_FILE
    if not path.is_file():
        return None
    try:
        # By its content: numpy leaves a file open that it can not read.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            found = np.asarray(arrays["centroids"])
    except _UNREADABLE as error:
        raise _rejected(f"can not be read: {type(error).__name__}") from None
    if found.dtype != np.float32 or found.ndim != 2 or not found.size:  # noqa: PLR2004
        raise _rejected("holds no centroids")
    if not np.isfinite(found).all():
        raise _rejected("holds what is no number")
    return found


def _scaled(embeddings: Floats) -> Floats:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    found: Floats = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    return found


def _grouped(scaled: Floats, labels: Labels) -> tuple[Floats, Labels, Labels]:
    """Return the centroids, and for each text which is its own; how many texts each is of."""
    _, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), scaled.shape[1]))
    np.add.at(sums, own, scaled)
    return (sums / counts[:, None]).astype(np.float32), own, counts


def _to_each(scaled: Floats, centroids: Floats) -> Floats:
    """Return the distance from each text to each centroid, shape (texts, centroids)."""
    # Not a matrix product: it would wake threads that go on spinning on the lanes' cores.
    products = np.einsum("tw,cw->tc", scaled, centroids)
    squares = (scaled**2).sum(axis=1)[:, None] + (centroids**2).sum(axis=1) - 2 * products
    found: Floats = np.sqrt(np.maximum(squares, 0))
    return found


def _rejected(reason: str) -> ModelRejected:
    return ModelRejected(CENTROIDS_FILE, reason, "Validate the version again: kaiten validate.")
