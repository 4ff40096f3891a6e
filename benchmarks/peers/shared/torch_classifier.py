"""The torch model behind the peers that leave the model to their user."""

import os

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Classifier:
    """Labels texts in one padded batch, as each of these servers documents it."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["THREADS"]))
        self.tokenizer = AutoTokenizer.from_pretrained(os.environ["MODEL"])
        self.model = AutoModelForSequenceClassification.from_pretrained(os.environ["MODEL"]).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[str]:
        encoded = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        label_ids = self.model(**encoded).logits.argmax(dim=1).tolist()
        return [self.model.config.id2label[index] for index in label_ids]
