"""Classifiers of the BERT and RoBERTa families over packed texts, without padding.

A custom attention, registered by name with transformers (AttentionInterface), attends within each
text only. The caller restarts position ids with each text.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface

from runners.engines.embedding import concat_embedding
from runners.engines.packing import Layout, Shape

_NAME = "kaiten_packed"
# The head sizes that flash attention's kernels take.
_HEAD_STEP, _LARGEST_HEAD = 8, 256
# From the first token of each text, shape (texts, 1, width), to its logits.
_Head = Callable[[Any, torch.Tensor], torch.Tensor]
_HEADS: dict[str, _Head] = {
    "bert": lambda network, first: network.classifier(network.bert.pooler(first)),
    "roberta": lambda network, first: network.classifier(first),
    "xlm-roberta": lambda network, first: network.classifier(first),
    "camembert": lambda network, first: network.classifier(first),
}


def is_packable(network: Any) -> bool:  # noqa: ANN401  transformers has no types
    """Return whether a network's texts can be packed."""
    config = network.config
    size = config.hidden_size // config.num_attention_heads if config.model_type in _HEADS else 0
    return 0 < size <= _LARGEST_HEAD and size % _HEAD_STEP == 0 and not config.is_decoder


class PackedNetwork(torch.nn.Module):
    """A packable network, from one row of numbers (see packing.Layout) to logits and embeddings.

    It changes the network's attention permanently. ``first_position`` is that of a text's first
    token: the families after RoBERTa count from padding_idx + 1.
    """

    def __init__(self, network: Any) -> None:  # noqa: ANN401
        super().__init__()
        AttentionInterface.register(_NAME, _attention)
        network.set_attn_implementation(_NAME)
        padding: int | None = network.base_model.embeddings.position_embeddings.padding_idx
        self.first_position = 0 if padding is None else padding + 1
        self.num_labels: int = network.config.num_labels
        self._network = network
        self._head = _HEADS[network.config.model_type]

    def forward(self, batch: torch.Tensor, shape: Shape, longest: int) -> torch.Tensor:
        """Return logits and embeddings as float32, (texts, labels + width).

        ``longest`` is the maximum number of tokens of a text.
        """
        layout = Layout(shape)
        starts = batch[layout.starts]
        hidden = self._network.base_model(
            input_ids=batch[layout.ids][None].long(),
            position_ids=batch[layout.positions][None].long(),
            cu_seq_lens_q=starts,
            cu_seq_lens_k=starts,
            max_length_q=longest,
            max_length_k=longest,
        ).last_hidden_state
        first = hidden[0].index_select(0, batch[layout.firsts])[:, None]
        return concat_embedding(self._head(self._network, first))


def _attention(
    module: torch.nn.Module,  # noqa: ARG001  transformers' signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  None for a custom attention
    **options: Any,  # noqa: ANN401  transformers' signature
) -> tuple[torch.Tensor, None]:
    """Attend within each text: (1, heads, tokens, size) to (1, tokens, heads, size)."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attend = _on_cuda if query.is_cuda else attend_each
    return attend(query, key, value, options["cu_seq_lens_q"], options["max_length_q"])[None], None


def _on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  CUDA's own

    # Scaled by 1 / sqrt(size), as both families are.
    result = varlen_attn(query, key, value, starts, starts, longest, longest)
    return result if isinstance(result, torch.Tensor) else result[0]


def attend_each(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,  # noqa: ARG001  the kernel's signature
) -> torch.Tensor:
    """Attend within each text, one after the other: the reference, and the form for a CPU.

    All tensors have shape (tokens, heads, size); tokens of no text result in zeros.
    """
    result = torch.zeros_like(query)
    bounds = starts.tolist()
    for begin, end in pairwise(bounds):
        if begin < end:
            q, k, v = (tensor[begin:end].transpose(0, 1)[None] for tensor in (query, key, value))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            result[begin:end] = attended[0].transpose(0, 1)
    return result
