"""The embedding of each text: the input of a classifier's last linear layer, in all engines.

That layer is the one whose output is the logits, and whose input has one row a text. A network that
computes its logits otherwise, as those that score every token and choose one, has no embedding.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runners.engines.base import Computed

# An attribute of the tensor, so that lanes which share a network never mix up their batches.
_ATTRIBUTE = "kaiten_embedding"


def watch_embedding(network: Any) -> None:  # noqa: ANN401  transformers has no types
    """Make a classifier's logits carry the input of its last layer."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == network.config.num_labels:
            module.register_forward_hook(_attach_input)


def embedding_of(logits: torch.Tensor) -> torch.Tensor | None:
    """Return the embedding that a watched network's logits carry, shape (texts, width)."""
    embedding: torch.Tensor | None = getattr(logits, _ATTRIBUTE, None)
    return embedding


def concat_embedding(logits: torch.Tensor) -> torch.Tensor:
    """Return logits and embedding as one float32 tensor, (texts, labels + width)."""
    embedding = embedding_of(logits)
    if embedding is None:
        return logits.float()
    return torch.cat((logits.float(), embedding.float()), dim=1)


def split_embedding(columns: NDArray[np.float32], labels: int) -> Computed:
    """Split the rows of ``concat_embedding`` into logits and embeddings."""
    embeddings = columns[:, labels:]
    return Computed(columns[:, :labels], embeddings if embeddings.shape[1] else None)


def _attach_input(
    module: torch.nn.Module,  # noqa: ARG001  torch's signature
    inputs: tuple[Any, ...],
    output: torch.Tensor,
) -> None:
    if inputs and inputs[0].ndim == 2:  # noqa: PLR2004
        setattr(output, _ATTRIBUTE, inputs[0])
