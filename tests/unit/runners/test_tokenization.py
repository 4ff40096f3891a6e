import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, EsmTokenizer

from kaiten.errors import ModelRejected
from runners.probe_texts import PROBE_TEXTS
from runners.tokenization import (
    SETTINGS_FILE,
    TOKENIZER_FILE,
    FastTokenizer,
    PythonTokenizer,
    TokenizationSettings,
    load_tokenizer,
)


def _tokenizers() -> dict[str, Tokenizer]:
    """Return small tokenizers of three kinds, by words and, of the last, of none."""
    corpus = ["the quick brown fox jumps over the lazy dog", "parcels, and don't! 12 34 naïve 漢字"]
    by_pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    by_pieces.normalizer = normalizers.BertNormalizer()
    by_pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    by_pieces.train_from_iterator(corpus, trainers.WordPieceTrainer(special_tokens=special))
    by_pieces.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    by_bytes = Tokenizer(models.BPE())
    by_bytes.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["[PAD]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    by_bytes.train_from_iterator(corpus, trainer)
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        corpus, trainers.UnigramTrainer(special_tokens=["[PAD]", "[UNK]"], unk_token="[UNK]")
    )
    no_words = Tokenizer.from_str(unigram.to_str())
    no_words.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizers = {"pieces": by_pieces, "bytes": by_bytes, "unigram": unigram, "no words": no_words}
    for tokenizer in tokenizers.values():
        tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizers


TOKENIZERS = _tokenizers()
UNITS = st.sampled_from(
    [
        "the ",
        "quick",
        " fox",
        ", ",
        "don't ",
        "[SEP]",
        "[SEP",
        "a" * 300,
        "漢",
        "😀",
        "é",
        "e\u0301",
        " " * 40,
        "\n",
        "1234 ",
        "\u0301" * 50,
    ]
)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(units=st.lists(UNITS, min_size=1, max_size=30), times=st.integers(1, 40))
def test_start_of_a_long_text_has_the_tokens_of_the_whole(
    name: str, side: str, units: list[str], times: int
) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS[name].to_str())
    tokenizer.enable_truncation(16, direction=side)
    text = "".join(units) * times
    (item,) = FastTokenizer(tokenizer, 16).encode([text])
    encoding = tokenizer.encode(text)
    assert item.ids == encoding.ids
    assert item.truncated == bool(encoding.overflowing)


def test_of_a_long_text_no_more_than_its_start_is_tokenised() -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(TOKENIZERS["pieces"].to_str()), 16)
    starts = [tokenizer._sufficient_start(text) for text in ("the fox " * 10_000, "a" * 300, "fox")]
    assert len(starts[0]) <= 1000
    assert starts[1:] == ["a" * 300, "fox"]


@pytest.mark.parametrize(
    "text",
    [
        "\u200b",
        "\u200b\u200c\u200d\ufeff",
        "\u0007\u001b",
        "\ue000\U000e0041",
        " \t\n",
        "\u00ad\u2060",
    ],
)
def test_text_that_the_normaliser_removes_is_blank(text: str) -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(TOKENIZERS["pieces"].to_str()), 16)
    (item,) = tokenizer.encode([text])
    assert item.blank


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["a", "a\u200b", "?", "0", "\u200bthe fox"])
def test_text_with_something_left_is_not_blank(name: str, text: str) -> None:
    (item,) = FastTokenizer(Tokenizer.from_str(TOKENIZERS[name].to_str()), 16).encode([text])
    assert not item.blank


@pytest.mark.parametrize("name", ["unigram", "no words"])
def test_text_of_blanks_alone_is_blank_to_a_tokenizer_that_keeps_them(name: str) -> None:
    (item,) = FastTokenizer(Tokenizer.from_str(TOKENIZERS[name].to_str()), 16).encode([" "])
    assert item.blank


def test_token_types_are_those_of_the_template() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS["pieces"].to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS]:2 $A:1 [SEP]:0", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    (item,) = FastTokenizer(tokenizer, 16, token_types=True).encode(["the fox"])
    assert [item.types[0], item.types[-1], {*item.types[1:-1]}] == [2, 0, {1}]


def test_settings_of_a_version_of_before_there_were_any_lie_in_its_tokenizer(
    tmp_path: Path,
) -> None:
    file = tmp_path / TOKENIZER_FILE
    file.parent.mkdir()
    TOKENIZERS["pieces"].save(str(file))
    assert TokenizationSettings.read(tmp_path) == TokenizationSettings(pad_id=0)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"padding": None}))
    with pytest.raises(ModelRejected, match="names no padding token"):
        TokenizationSettings.read(tmp_path)


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = TokenizationSettings(
        backend="transformers", pad_id=7, pad_side="left", token_types=True, batched=False
    )
    settings.write(tmp_path)
    assert TokenizationSettings.read(tmp_path) == settings
    assert (tmp_path / SETTINGS_FILE).is_file()


def esm(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    folder.joinpath("vocab.txt").write_text(
        "\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"ACDE"])
    )
    return EsmTokenizer(str(folder / "vocab.txt"))


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("length", [4, 16, 64])
def test_python_tokenizer_gives_transformers_ids(length: int) -> None:
    reference = ByT5Tokenizer()
    tokenizer = PythonTokenizer(reference, length)
    texts = [*PROBE_TEXTS, "a" * 5000, "wörter " * 900]
    for text, item in zip(texts, tokenizer.encode(texts), strict=True):
        tokens = reference(text, add_special_tokens=False)["input_ids"]
        assert item.ids == reference(text, truncation=True, max_length=length)["input_ids"]
        # And </s>.
        assert item.truncated == (len(tokens) + 1 > length)
        assert not item.blank
    assert tokenizer.encode([""])[0].blank


def test_python_tokenizer_knows_its_vocabulary(tmp_path: Path) -> None:
    tokenizer = PythonTokenizer(esm(tmp_path), 16)
    (item,) = tokenizer.encode(["A C Z"])
    assert tokenizer.vocabulary_size > max(item.ids)
    assert tokenizer.unknown_id in item.ids
    assert {item.ids[0], item.ids[-1]} <= tokenizer.special_ids


def test_tokenizer_without_a_fast_form_is_loaded_from_its_folder(tmp_path: Path) -> None:
    reference = esm(tmp_path)
    reference.save_pretrained(tmp_path)
    settings = TokenizationSettings(backend="transformers", pad_id=1)
    (item,) = load_tokenizer(tmp_path, settings, 8).encode(["A C D E"])
    assert item.ids == reference("A C D E")["input_ids"]
