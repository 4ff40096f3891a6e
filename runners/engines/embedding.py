"""What a classifier's last linear layer reads of each text: its embedding, one in all engines.

That layer is found by what it does: the one whose output are the logits, and which reads one row a
text. A network that computes its logits otherwise, as those that score every token and choose
one, has no embedding.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runners.engines.base import Computed

# On a tensor itself, so that lanes which share a network never mix their batches up.
_READ = "kaiten_read"


def watch(network: Any) -> None:  # noqa: ANN401  transformers has no types
    """Have a classifier's logits carry what its last layer read to compute them."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == network.config.num_labels:
            module.register_forward_hook(_note)


def embedding_of(logits: torch.Tensor) -> torch.Tensor | None:
    """Return what a watched network's logits were computed from, shape (texts, width)."""
    found: torch.Tensor | None = getattr(logits, _READ, None)
    return found


def joined(logits: torch.Tensor) -> torch.Tensor:
    """Return logits, and beside them the embedding if there is one: one tensor to copy, float32."""
    found = embedding_of(logits)
    return logits.float() if found is None else torch.cat((logits.float(), found.float()), dim=1)


def parted(found: NDArray[np.float32], labels: int) -> Computed:
    """Return what was joined."""
    embeddings = found[:, labels:]
    return Computed(found[:, :labels], embeddings if embeddings.shape[1] else None)


def _note(
    module: torch.nn.Module,  # noqa: ARG001  torch hands it on
    given: tuple[Any, ...],
    output: torch.Tensor,
) -> None:
    if given and given[0].ndim == 2:  # noqa: PLR2004
        setattr(output, _READ, given[0])
