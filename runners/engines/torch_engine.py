"""The torch engine: a transformers sequence classifier, computed eagerly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from kaiten.errors import ModelRejected
from kaiten.sections import Runners
from runners.engines.base import Computed, pad
from runners.engines.embedding import joined, parted, watch


def load_network(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    """Load a folder's classifier onto the CPU, its embeddings watched.

    ModelRejected where weights are missing.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # Safetensors only, and never code or files from elsewhere.
    network, loaded = AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers fills what is missing at random, and would serve that.
    if missing := sorted(loaded["missing_keys"]):
        raise ModelRejected("weights", f"lack {', '.join(missing[:5])}", "Save the whole model.")
    watch(network)
    return network.eval()


def _copy_from_files(network: torch.nn.Module) -> None:
    """Copy weights that are mapped from files into memory, one at a time.

    A file that is truncated or overwritten in place would end the process, or change its answers.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


class TorchEngine:
    """Computes padded batches of token ids.

    Use it from one lasting thread: torch keeps a pool of workers for each thread that calls it.
    Its settings name a device: choose_engine has decided what auto is.
    """

    lanes = 1
    batch_tokens = 4096
    batch_items = 64
    packed = False
    # Its threads are a lane's own: another lane would bring as many.
    express = False

    def __init__(self, folder: Path, settings: Runners) -> None:
        self.device = torch.device(settings.device)
        self._threads = settings.threads
        self._model = load_network(folder).to(self.device)
        if self.device.type == "cpu":
            _copy_from_files(self._model)

    @property
    def network(self) -> Any:  # noqa: ANN401  transformers has no types
        """The transformers model itself, for its export."""
        return self._model

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids that there are embeddings for."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def positions(self) -> int | None:
        """The longest input that the model has positions for; None if it has no such limit.

        Families after RoBERTa count positions from padding_idx + 1, so some are never used.
        """
        for name, module in self._model.named_modules():
            if name.endswith("position_embeddings") and hasattr(module, "weight"):
                padding_index = getattr(module, "padding_idx", None)
                unused = 0 if padding_index is None else padding_index + 1
                return int(module.weight.shape[0]) - unused
        limit: int | None = getattr(self._model.config, "max_position_embeddings", None)
        return limit

    def reserve(self, tokens: int, items: int) -> None:
        """Reserve nothing: a CPU's memory is the machine's."""

    @torch.inference_mode()
    def compute(
        self,
        token_ids: Sequence[Sequence[int]],
        pad_id: int,
        *,
        alone: bool = False,  # noqa: ARG002  with one lane, every batch has all threads
    ) -> Computed:
        """Return the logits and embeddings of a batch; texts are padded to the longest."""
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        ids, mask = pad(token_ids, pad_id)
        output = self._model(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(mask).to(self.device),
        )
        return parted(joined(output.logits).cpu().numpy(), self._model.config.num_labels)
