"""The model that is measured: bert-base by its config and a seed, with a head that knows its texts.

A body of random weights computes what a trained one does. The head is trained on what the body
makes of the texts that are asked, with noise, so that their labels are not near ties, which no
precision keeps.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from examples.quickstart.train import Example

SEED = 20261125
MAX_LENGTH = 512
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = 4000
_STEPS, _RATE, _NOISE = 1500, 1e-2, 0.2
_BATCH = 128
# A layer's weights, by the width: at the usual 0.02 a random body hardly tells texts apart.
_GAIN = 1.1
# The median of the margins between the two best logits: clear, and no surer than rounding allows.
# On a CPU, bf16 moves a probability by 0.04 at twice as much, for sentences never seen.
_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a BERT; that of bert-base by default."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    vocabulary: int = 30_522

    @property
    def weights_per_token(self) -> int:
        """The weights that each token is multiplied by, embeddings left out."""
        return self.layers * 12 * self.hidden**2

    def flops(self, tokens: float, text_tokens: float) -> float:
        """Return what computing so many tokens takes, in texts of so many tokens on average."""
        attention = 4 * self.layers * self.hidden * text_tokens
        return tokens * (2 * self.weights_per_token + attention)


@dataclass(frozen=True, slots=True)
class Facts:
    """The share of the texts that are labelled as asked, and the logits between the two best.

    ``narrow_margin`` is what all but a hundredth of the texts have at least.
    """

    right: float
    narrow_margin: float


TINY = Size(hidden=128, layers=2, heads=2, vocabulary=5000)


def make(folder: Path, rows: Sequence[Example], size: Size, device: torch.device) -> Facts:
    """Write a model and its tokenizer, the same for the same texts, and tell how well it does."""
    torch.manual_seed(SEED)
    texts = [row.text for row in rows]
    tokenizer = _tokenizer(texts)
    labels = sorted({row.label for row in rows})
    config = BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        initializer_range=_GAIN / size.hidden**0.5,
        pad_token_id=0,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    network: Any = BertForSequenceClassification(config).to(device).eval()
    targets = torch.tensor([labels.index(row.label) for row in rows], device=device)
    features = _features(network, tokenizer, texts, device)
    _train_head(network.classifier, features, targets)
    facts = _scale_head(network.classifier, features, targets)
    network.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return facts


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer of the texts' words; its trainer would not do the same twice."""
    words = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    letters = sorted({letter for word in words for letter in word})
    ranked = sorted(words, key=lambda word: (-words[word], word))
    pieces = [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *ranked[:_WORDS]]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    named = {f"{token.strip('[]').lower()}_token": token for token in _SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **named)


@torch.no_grad()
def _features(
    network: Any, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], device: torch.device
) -> torch.Tensor:
    """Return what the head sees of each text, shape (texts, hidden)."""
    features = []
    for at in range(0, len(texts), _BATCH):
        batch = tokenizer([*texts[at : at + _BATCH]], padding=True, return_tensors="pt").to(device)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        features.append(network.bert(**inputs).pooler_output)
    return torch.cat(features)


def _train_head(head: torch.nn.Linear, features: torch.Tensor, targets: torch.Tensor) -> None:
    spread = _NOISE * features.std(0)
    optimizer = torch.optim.Adam(head.parameters(), _RATE)
    for _ in range(_STEPS):
        noisy = features + spread * torch.randn_like(features)
        loss = cross_entropy(head(noisy), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _scale_head(head: torch.nn.Linear, features: torch.Tensor, targets: torch.Tensor) -> Facts:
    """Bring the margins to a measure; no label changes by it."""
    best = head(features).topk(2).values
    scale = float(_MARGIN / (best[:, 0] - best[:, 1]).median())
    head.weight.mul_(scale)
    head.bias.mul_(scale)
    logits = head(features)
    best = logits.topk(2).values
    margins = best[:, 0] - best[:, 1]
    right = float((logits.argmax(1) == targets).float().mean())
    return Facts(right, float(margins.quantile(0.01)))
