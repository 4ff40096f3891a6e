"""The torch engine: a transformers sequence classifier, computed eagerly."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from kaiten.confinement import list_names
from kaiten.errors import ModelRejected
from kaiten.settings.models import RunnerSettings
from runners.engines.base import Computed, TokenBatch
from runners.engines.embedding import concat_embedding, split_embedding, watch_embedding

_NAMED = 5
# Weights that classifiers are often saved with and never used: position numbers, masks and rotary
# frequencies, which are constants; and the head of the pretraining, or its pooler if the classifier
# has none.
_HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|masked_bias|attn\.bias|attention\.bias|inv_freq)$"
    r"|(^|\.)(lm_head|cls\.predictions|cls\.seq_relationship|lm_predictions|mask_predictions"
    r"|vocab_transform|vocab_layer_norm|vocab_projector|generator_lm_head|generator_predictions"
    r"|discriminator_predictions|final_logits_bias|pooler)(\.|$)"
)


def load_network(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    """Load a folder's classifier onto the CPU in float32, and watch its embeddings.

    Raises:
        ModelRejected: Weights are missing, or the folder holds weights that the network does not
            use.

    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # Safetensors only, and never code or files from elsewhere. A CPU computes half precision slowly
    # and less exactly.
    network, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
    )
    _check_weights(type(network).__name__, loading)
    # The engine reads the logits by name.
    network.config.return_dict = True
    watch_embedding(network)
    return network.eval()


def _check_weights(network: str, loading: Mapping[str, Any]) -> None:
    """Reject missing and unused weights, and weights of other sizes than those in config.json.

    transformers initialises missing weights at random.
    """
    unused = [key for key in sorted(loading["unexpected_keys"]) if not _HARMLESS.search(key)]
    if mismatched := sorted(loading["mismatched_keys"]):
        key, saved, configured = mismatched[0]
        raise ModelRejected(
            "weights",
            f"have {key} of shape {(*saved,)}, and by config.json it is {(*configured,)}",
            "Correct config.json (its id2label, and its sizes) to the trained model's, or save the "
            "model again with save_pretrained.",
        )
    if missing := sorted(loading["missing_keys"]):
        reason = f"lack {list_names(missing, _NAMED)}, which {network} needs by config.json"
        raise ModelRejected("weights", reason, _remedy(unused))
    if unused:
        raise ModelRejected(
            "weights",
            f"hold {list_names(unused, _NAMED)}, which {network} with this config.json does "
            "not use, so it would answer otherwise than it was trained",
            _remedy(unused),
        )


def _remedy(unused: Sequence[str]) -> str:
    if any("lora_" in key or "adapter" in key or ".base_layer." in key for key in unused):
        return (
            "Merge the adapter (peft: model.merge_and_unload().save_pretrained(FOLDER)), and "
            "register that folder."
        )
    return (
        "Correct config.json (its architectures and its number of layers) to the trained model's, "
        "or save the model again with save_pretrained after it was fine-tuned for classification."
    )


def _copy_from_files(network: torch.nn.Module) -> None:
    """Copy memory-mapped weights, one at a time.

    A file that is truncated or overwritten in place would end the process, or change predictions.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


class TorchEngine:
    """Computes padded batches of token ids.

    Use it from one permanent thread: torch keeps a pool of workers for each thread that calls it.
    Its settings name a device, because choose_engine has replaced auto.
    """

    lanes = 1
    batch_tokens = 4096
    batch_items = 64
    packed = False
    # Another lane would have as many threads as this one.
    express = False

    def __init__(self, folder: Path, settings: RunnerSettings) -> None:
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
    def vocabulary_size(self) -> int | None:
        """The number of token ids that have embeddings; None if the network has no such table."""
        try:
            return int(self._model.get_input_embeddings().weight.shape[0])
        except (AttributeError, NotImplementedError):
            # CANINE hashes its characters.
            return None

    def takes(self, name: str) -> bool:
        """Return whether the network's forward has an input of this name."""
        return name in inspect.signature(self._model.forward).parameters

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
        limit = getattr(self._model.config, "max_position_embeddings", None)
        # XLNet says -1 for no limit.
        return limit if isinstance(limit, int) and limit > 0 else None

    def reserve(self, tokens: int, items: int) -> None:
        """Reserve nothing: a CPU's memory is the machine's."""

    @torch.inference_mode()
    def compute(
        self,
        batch: TokenBatch,
        *,
        alone: bool = False,  # noqa: ARG002  with one lane, every batch has all threads
    ) -> Computed:
        """Return the logits and embeddings of a batch."""
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        output = self._model(
            **{
                name: torch.from_numpy(array).to(self.device)
                for name, array in batch.arrays().items()
            }
        )
        return split_embedding(
            concat_embedding(output.logits).cpu().numpy(), self._model.config.num_labels
        )
