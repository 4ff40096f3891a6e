"""Real tokenizers of the classes that people use, trained on our own sentences."""

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.acceptance.zoo.corpus import CORPUS
from tests.acceptance.zoo.specimens import MAX_LENGTH

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_XLM_SPECIAL = tuple(f"<special{number}>" for number in range(10))
_AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
_IDS = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")


@dataclass(frozen=True)
class TokenIds:
    """What a model's configuration says of its tokenizer; ``size`` is one more than the last id."""

    size: int
    special: Mapping[str, int]


@dataclass(frozen=True)
class Kind:
    """A tokenizer class, the vocabulary that it is saved with, and its options.

    ``needs`` is a package without which transformers cannot load the class; its files are then
    written as they are, with ``options`` as the configuration.
    """

    cls: str
    vocabulary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None


def _wordpiece(folder: Path, *, special: Sequence[str] = _BERT, lower: bool = True) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token=special[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=900, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _write_lines(folder / "vocab.txt", _ordered(tokenizer))


def _byte_bpe(folder: Path, *, special: Sequence[str], suffix: str = "") -> None:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))


def _word_bpe(special: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return tokens and merges of words whose last token ends with ``</w>``."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(special),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return _ordered(tokenizer), [tuple(pair) for pair in merges]


def _openai_gpt(folder: Path, *, special: Sequence[str], header: bool = True) -> None:
    tokens, merges = _word_bpe(special)
    _write_vocabulary(folder, tokens)
    lines = [f"{first} {second}" for first, second in merges]
    _write_lines(folder / "merges.txt", ["#version: 0.2", *lines] if header else lines)


def _marked(token: str, special: Sequence[str]) -> str:
    """Return a token as fairseq and CTRL write it: ``@@`` if the word continues."""
    if token in special:
        return token
    return token.removesuffix("</w>") if token.endswith("</w>") else f"{token}@@"


def _ctrl(folder: Path) -> None:
    special = ("<pad>", "<unk>")
    tokens, merges = _word_bpe(special)
    _write_vocabulary(folder, list(dict.fromkeys(_marked(token, special) for token in tokens)))
    lines = [f"{first} {second}" for first, second in merges]
    _write_lines(folder / "merges.txt", ["#version: 0.2", *lines, ""])


def _fairseq_bpe(folder: Path) -> None:
    tokens, merges = _word_bpe(_FAIRSEQ)
    marked = dict.fromkeys(_marked(token, _FAIRSEQ) for token in tokens if token not in _FAIRSEQ)
    _write_lines(folder / "vocab.txt", [f"{token} 1" for token in marked])
    _write_lines(folder / "bpe.codes", [f"{first} {second} 1" for first, second in merges])


def _japanese(folder: Path) -> None:
    characters = sorted({character for text in CORPUS for character in text if character != " "})
    words = ["荷物", "まだ", "届い", "注文", "請求", "##書", "です", "ます"]
    _write_lines(folder / "vocab.txt", [*_BERT, *words, *characters])


def _esm(folder: Path) -> None:
    special = ["<cls>", "<pad>", "<eos>", "<unk>"]
    _write_lines(folder / "vocab.txt", [*special, *_AMINO_ACIDS, "<null_1>", "<mask>"])


def _roc_bert(folder: Path) -> None:
    _wordpiece(folder)
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    for name, size in (("word_shape", 40), ("word_pronunciation", 30)):
        ids = {token: index % size for index, token in enumerate(tokens)}
        (folder / f"{name}.json").write_text(json.dumps(ids), encoding="utf-8")


def _luke(folder: Path) -> None:
    _byte_bpe(folder, special=_FAIRSEQ)
    entities = ["[PAD]", "[UNK]", "[MASK]", "[MASK2]", "Japan", "Ana Ivanovic"]
    ids = {entity: index for index, entity in enumerate(entities)}
    (folder / "entity_vocab.json").write_text(json.dumps(ids), encoding="utf-8")


def _sentencepiece(folder: Path, *, file: str, **options: Any) -> None:  # noqa: ANN401
    model = io.BytesIO()
    sentencepiece: Any = import_module("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        **{
            "vocab_size": 900,
            "hard_vocab_limit": False,
            "character_coverage": 0.98,
            "num_threads": 1,
            "minloglevel": 2,
            **options,
        },
    )
    (folder / file).write_bytes(model.getvalue())


def _bare(_: Path) -> None:
    """Write nothing: the class reads characters or bytes."""


_XLM_R = partial(_sentencepiece, file="sentencepiece.bpe.model")
# The files that a class without tokenizer.json reads, by name.
_VOCABULARIES: Mapping[str, Callable[[Path], None]] = {
    "bert": _wordpiece,
    "bert-cased": partial(_wordpiece, lower=False),
    "mpnet": partial(_wordpiece, special=("<s>", "[UNK]", "<pad>", "</s>", "<unk>", "<mask>")),
    "funnel": partial(
        _wordpiece, special=("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>")
    ),
    "roberta": partial(_byte_bpe, special=_FAIRSEQ),
    "gpt2": partial(_byte_bpe, special=("<|endoftext|>", "<|pad|>")),
    "deberta": partial(_byte_bpe, special=("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")),
    "qwen2": partial(_byte_bpe, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "clip": partial(_byte_bpe, special=("<|startoftext|>", "<|endoftext|>"), suffix="</w>"),
    "luke": _luke,
    "openai-gpt": partial(_openai_gpt, special=("<unk>", "<pad>")),
    "xlm": partial(
        _openai_gpt, special=("<s>", "</s>", "<pad>", "<unk>", *_XLM_SPECIAL), header=False
    ),
    "ctrl": _ctrl,
    "fairseq": _fairseq_bpe,
    "japanese": _japanese,
    "esm": _esm,
    "roc_bert": _roc_bert,
    "bare": _bare,
    "albert": partial(
        _sentencepiece,
        file="spiece.model",
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        user_defined_symbols=["(", ")", '"', "-", "."],
    ),
    "xlnet": partial(
        _sentencepiece,
        file="spiece.model",
        control_symbols=["<cls>", "<sep>", "<pad>", "<mask>", "<eod>"],
        user_defined_symbols=["<eop>", ".", "(", ")", '"', "-"],
    ),
    "t5": partial(_sentencepiece, file="spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "xlm-roberta": _XLM_R,
    "reformer": partial(_sentencepiece, file="spiece.model", pad_id=3),
    "deberta-v2": partial(
        _sentencepiece,
        file="spm.model",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
    ),
    "big_bird": partial(
        _sentencepiece,
        file="spiece.model",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    ),
    "rembert": partial(
        _sentencepiece,
        file="sentencepiece.model",
        pad_id=0,
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    ),
    "llama": partial(
        _sentencepiece,
        file="tokenizer.model",
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
    ),
    "gemma": partial(
        _sentencepiece,
        file="tokenizer.model",
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<mask>"],
    ),
}
_XLM_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "</s>",
    "mask_token": "<special1>",
}
_CLS_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
KINDS: Mapping[str, Kind] = {
    "bert": Kind("BertTokenizer", "bert"),
    "bert-cased": Kind("BertTokenizer", "bert-cased", {"do_lower_case": False}),
    "bert-accents": Kind("BertTokenizer", "bert", {"strip_accents": False}),
    "bert-left": Kind("BertTokenizer", "bert", {"padding_side": "left"}),
    "distilbert": Kind("DistilBertTokenizer", "bert"),
    "electra": Kind("ElectraTokenizer", "bert"),
    "layoutlm": Kind("LayoutLMTokenizer", "bert"),
    "tapas": Kind("TapasTokenizer", "bert"),
    "layoutlmv3": Kind("LayoutLMv3Tokenizer", "roberta"),
    "markuplm": Kind("MarkupLMTokenizer", "roberta", {"tags_dict": {"html": 0, "p": 1}}),
    "mobilebert": Kind("MobileBertTokenizer", "bert"),
    "squeezebert": Kind("SqueezeBertTokenizer", "bert"),
    "convbert": Kind("ConvBertTokenizer", "bert"),
    "mpnet": Kind("MPNetTokenizer", "mpnet"),
    "funnel": Kind("FunnelTokenizer", "funnel"),
    "roberta": Kind("RobertaTokenizer", "roberta"),
    "roberta-prefix": Kind("RobertaTokenizer", "roberta", {"add_prefix_space": True}),
    "bart": Kind("BartTokenizer", "roberta"),
    "longformer": Kind("LongformerTokenizer", "roberta"),
    "luke": Kind("LukeTokenizer", "luke"),
    "gpt2": Kind("GPT2Tokenizer", "gpt2", {"pad_token": "<|endoftext|>"}),
    "gpt2-pad": Kind("GPT2Tokenizer", "gpt2", {"pad_token": "<|pad|>"}),
    "gpt2-left": Kind("GPT2Tokenizer", "gpt2", {"pad_token": "<|pad|>", "padding_side": "left"}),
    "deberta": Kind("DebertaTokenizer", "deberta"),
    "qwen2": Kind("Qwen2Tokenizer", "qwen2"),
    "clip": Kind("CLIPTokenizer", "clip"),
    "openai-gpt": Kind("OpenAIGPTTokenizer", "openai-gpt", {"pad_token": "<pad>"}),
    "albert": Kind("AlbertTokenizer", "albert"),
    "fnet": Kind("FNetTokenizer", "albert"),
    "xlnet": Kind("XLNetTokenizer", "xlnet", {"padding_side": "left"}),
    "t5": Kind("T5Tokenizer", "t5", {"extra_ids": 10}),
    "reformer": Kind("ReformerTokenizer", "reformer", {"pad_token": "<pad>"}),
    "xlm-roberta": Kind("XLMRobertaTokenizer", "xlm-roberta"),
    "mbart": Kind("MBartTokenizer", "xlm-roberta", {"src_lang": "en_XX"}),
    "mbart50": Kind("MBart50Tokenizer", "xlm-roberta", {"src_lang": "en_XX"}),
    "camembert": Kind("CamembertTokenizer", "xlm-roberta"),
    "barthez": Kind("BarthezTokenizer", "xlm-roberta"),
    "nllb": Kind("NllbTokenizer", "xlm-roberta"),
    "deberta-v2": Kind("DebertaV2Tokenizer", "deberta-v2"),
    "deberta-v2-punct": Kind(
        "DebertaV2Tokenizer", "deberta-v2", {"split_by_punct": True, "do_lower_case": True}
    ),
    "big_bird": Kind("BigBirdTokenizer", "big_bird"),
    "rembert": Kind("RemBertTokenizer", "rembert"),
    "llama": Kind("LlamaTokenizer", "llama", {"pad_token": "<unk>", "legacy": False}),
    "llama-legacy": Kind("LlamaTokenizer", "llama", {"pad_token": "</s>", "legacy": True}),
    "gemma": Kind("GemmaTokenizer", "gemma"),
    "bertweet": Kind("BertweetTokenizer", "fairseq"),
    "bertweet-normal": Kind("BertweetTokenizer", "fairseq", {"normalization": True}),
    "phobert": Kind("PhobertTokenizer", "fairseq"),
    "japanese-character": Kind(
        "BertJapaneseTokenizer", "japanese", {"subword_tokenizer_type": "character"}
    ),
    "japanese-mecab": Kind(
        "BertJapaneseTokenizer",
        "japanese",
        {"word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": "unidic_lite"}}
        | _CLS_TOKENS,
        needs="fugashi",
    ),
    "esm": Kind("EsmTokenizer", "esm"),
    "byt5": Kind("ByT5Tokenizer", "bare", {"extra_ids": 10}),
    "canine": Kind("CanineTokenizer", "bare"),
    "perceiver": Kind("PerceiverTokenizer", "bare"),
    "ctrl": Kind("CTRLTokenizer", "ctrl", {"pad_token": "<pad>"}),
    "roc_bert": Kind("RoCBertTokenizer", "roc_bert"),
    "xlm": Kind("XLMTokenizer", "xlm", _XLM_TOKENS, needs="sacremoses"),
    "flaubert": Kind("FlaubertTokenizer", "xlm", _XLM_TOKENS, needs="sacremoses"),
    "biogpt": Kind(
        "BioGptTokenizer",
        "xlm",
        {
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
        },
        needs="sacremoses",
    ),
    "roformer": Kind("RoFormerTokenizer", "bert", _CLS_TOKENS, needs="rjieba"),
    # Built of parts, as people who train their own tokenizer do.
    "own-wordpiece": Kind("PreTrainedTokenizerFast", "", _CLS_TOKENS),
    "own-bpe": Kind(
        "PreTrainedTokenizerFast",
        "",
        {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
    ),
    "own-unigram": Kind(
        "PreTrainedTokenizerFast",
        "",
        {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"},
    ),
    "own-words": Kind("PreTrainedTokenizerFast", "", _CLS_TOKENS),
}


def _own_wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace("\u2019", "'"),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.WordPieceTrainer(
        vocab_size=800, special_tokens=list(_BERT), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _template(tokenizer, "[CLS]:0 $A:1 [SEP]:1", "[CLS]", "[SEP]")
    return tokenizer


def _own_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Strip(),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<pad>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _template(tokenizer, "<s>:0 $A:0 </s>:0", "<s>", "</s>")
    return tokenizer


def _own_unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<unk>", "<cls>", "<sep>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _template(tokenizer, "<cls>:0 $A:0 <sep>:0", "<cls>", "<sep>")
    return tokenizer


def _own_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=list(_BERT), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    return tokenizer


_OWN: Mapping[str, Callable[[], Tokenizer]] = {
    "own-wordpiece": _own_wordpiece,
    "own-bpe": _own_bpe,
    "own-unigram": _own_unigram,
    "own-words": _own_words,
}


def _template(tokenizer: Tokenizer, single: str, *special: str) -> processors.TemplateProcessing:
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    return processors.TemplateProcessing(single=single, special_tokens=ids)


class Vocabularies:
    """Vocabulary files, saved tokenizers and models, made when they are first asked for.

    ``saved`` is a folder of tokenizers that transformers 4.57 saved.
    """

    def __init__(self, folder: Path, saved: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._cache, self._saved_by_4 = folder, saved

    def files(self, name: str) -> Path:
        """Return the folder with the files that a class without tokenizer.json reads."""
        return self.build_once(f"vocabulary-{name}", _VOCABULARIES[name])

    def save(self, kind: str, folder: Path) -> TokenIds:
        """Save a tokenizer into a model's folder, as transformers saves it."""
        shutil.copytree(self.tokenizer(kind), folder, dirs_exist_ok=True)
        return token_ids(folder, KINDS[kind])

    def tokenizer(self, kind: str) -> Path:
        """Return the folder of a saved tokenizer."""
        return self.build_once(f"tokenizer-{kind}", partial(self._save, kind))

    def _save(self, name: str, folder: Path) -> None:
        kind = KINDS[name]
        transformers: Any = import_module("transformers")
        options = {"model_max_length": MAX_LENGTH, **kind.options}
        if name in _OWN:
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_object=_OWN[name](), **options
            )
            tokenizer.save_pretrained(folder)
            return
        files = self.files(kind.vocabulary)
        if is_missing(kind):
            shutil.copytree(files, folder, dirs_exist_ok=True)
            config = {"tokenizer_class": kind.cls, **options}
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
            return
        cls = getattr(transformers, kind.cls)
        # Classes without files cannot be loaded from a folder without a configuration.
        empty = kind.vocabulary == "bare"
        tokenizer = cls(**options) if empty else cls.from_pretrained(files, **options)
        tokenizer.save_pretrained(folder)

    def copy_saved(self, kind: str, folder: Path) -> TokenIds:
        """Copy a tokenizer that transformers 4.57 saved into a model's folder."""
        assert self._saved_by_4 is not None
        ignored = shutil.ignore_patterns("ids.json")
        shutil.copytree(self._saved_by_4 / kind, folder, ignore=ignored, dirs_exist_ok=True)
        return token_ids(folder)

    def saved_ids(self, kind: str) -> list[list[int]]:
        """Return the ids that transformers 4.57 itself gives for PROBE_TEXTS."""
        assert self._saved_by_4 is not None
        ids: list[list[int]] = json.loads((self._saved_by_4 / kind / "ids.json").read_bytes())
        return ids

    def build_once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the folder that ``make`` fills, once for all processes."""
        folder = self._cache / name
        with FileLock(self._cache / f"{name}.lock"):
            if not folder.exists():
                unfinished = self._cache / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder


def is_missing(kind: Kind) -> bool:
    """Return whether a package is missing that the class needs."""
    return kind.needs is not None and find_spec(kind.needs) is None


def token_ids(folder: Path, kind: Kind | None = None) -> TokenIds:
    """Return the ids of a saved tokenizer."""
    if kind is not None and is_missing(kind):
        return _written_ids(folder, kind)
    transformers: Any = import_module("transformers")
    if (folder / "tokenizer.json").exists():
        size = max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values()) + 1
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        name = json.loads((folder / "tokenizer_config.json").read_bytes())["tokenizer_class"]
        tokenizer = getattr(transformers, name).from_pretrained(folder)
        # All of Unicode is CANINE's, which no configuration says.
        size = 1 if name == "CanineTokenizer" else max(tokenizer.get_vocab().values()) + 1
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in _IDS}
    return TokenIds(size, {name: index for name, index in special.items() if index is not None})


def _written_ids(folder: Path, kind: Kind) -> TokenIds:
    """Return the ids of a tokenizer that cannot be loaded here, by its vocabulary."""
    if (folder / "vocab.json").exists():
        vocabulary = json.loads((folder / "vocab.json").read_bytes())
    else:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
        vocabulary = {token: index for index, token in enumerate(lines)}
    tokens = {name: kind.options.get(f"{name}_token") for name in _IDS}
    special = {name: vocabulary[token] for name, token in tokens.items() if token in vocabulary}
    return TokenIds(len(vocabulary), special)


def _ordered(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _write_vocabulary(folder: Path, tokens: Sequence[str]) -> None:
    ids = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
