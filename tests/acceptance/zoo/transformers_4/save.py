"""Save tokenizers by transformers 4.57; runs in an environment of its own.

``save.py ORDER TARGET``: ORDER is a JSON file with the tokenizers' classes, vocabularies and
options, and the texts whose token ids go beside each saved tokenizer.
"""

import json
import sys
from pathlib import Path

import transformers
from tokenizers import normalizers


def main(order: Path, target: Path) -> None:
    """Save every tokenizer of the order."""
    content = json.loads(order.read_text(encoding="utf-8"))
    for name, kind in content["kinds"].items():
        cls = getattr(transformers, kind["cls"].removesuffix("Fast") + "Fast")
        file = Path(kind["files"], "tokenizer.json")
        if file.exists():
            tokenizer = cls(tokenizer_file=str(file), **kind["options"])
        else:
            tokenizer = cls.from_pretrained(kind["files"], **kind["options"])
        if kind["own_normaliser"]:
            tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
                [
                    normalizers.NFKC(),
                    normalizers.Replace("ß", "ss"),
                    normalizers.Lowercase(),
                ]
            )
        tokenizer.save_pretrained(target / name)
        # Loaded again: what counts is what the folder gives.
        saved = cls.from_pretrained(target / name)
        ids = [saved(text, truncation=True)["input_ids"] for text in content["texts"]]
        (target / name / "ids.json").write_text(json.dumps(ids), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
