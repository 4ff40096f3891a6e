"""Tokenises texts as in a model's training.

Most models are served by the tokenizer in their folder's ``tokenizer.json``, through the tokenizers
package. Those that have none and cannot be converted are served by transformers' own Python class,
which is slower. transformers is imported only if such a tokenizer is loaded, and torch never.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict
from tokenizers import Encoding, Tokenizer

from kaiten.errors import ModelRejected
from runners.engines.base import PadSide

TOKENIZER_FILE = "serving/tokenizer.json"
SETTINGS_FILE = "serving/tokenization.json"
TOKEN_TYPES = "token_type_ids"  # noqa: S105  no secret
# The start of a long text that is tokenised first, in characters for each token of the maximum.
_CHARS_PER_TOKEN = 8
# Texts of at most so many tokens are checked for being blank.
_MAX_BLANK_TOKENS = 8
# Characters by which tokenizers mark a space, a line end or a word's end.
_BLANK_MARKS = str.maketrans("", "", "\u2581\u0120\u010a\u0109\u010d")
# So many tokens at the end of a cut text may differ from those of the whole text.
_MARGIN_TOKENS = 64
_OVERFLOW = "overflowing_tokens"


class TokenizationSettings(BaseModel):
    """How a model's texts become its inputs, as registration determined it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["tokenizers", "transformers"] = "tokenizers"
    pad_id: int
    pad_side: PadSide = "right"
    # Whether the network takes token types, and the type of padding.
    token_types: bool = False
    pad_type: int = 0
    # Shorter texts are padded to so many tokens.
    min_length: int = 0
    # Whether texts may share a batch without changing each other's answers.
    batched: bool = True

    def write(self, folder: Path) -> None:
        """Write the settings into a version's folder."""
        file = folder / SETTINGS_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TokenizationSettings":
        """Read the settings of a version; an older Kaiten stored them in the tokenizer.

        Raises:
            ModelRejected: The tokenizer names no padding token.

        """
        try:
            return cls.model_validate_json((folder / SETTINGS_FILE).read_bytes())
        except FileNotFoundError:
            padding = Tokenizer.from_file(str(folder / TOKENIZER_FILE)).padding
        if padding is None:
            raise ModelRejected(
                TOKENIZER_FILE,
                "names no padding token",
                "Register the model under a new version, and serve that.",
            )
        return cls(pad_id=padding["pad_id"])


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text as token ids, special tokens included, cut at the model's maximum length.

    ``types`` are its token types, empty if the network takes none. A ``blank`` text has no tokens
    but special ones and blanks.
    """

    ids: Sequence[int]
    types: Sequence[int] = ()
    truncated: bool = False
    blank: bool = False

    @property
    def cost(self) -> int:
        """Its length in tokens."""
        return len(self.ids)


class TextTokenizer(Protocol):
    """Turns texts into token ids, special tokens included, cut at the model's maximum length.

    ``special_ids`` are the ids of all special tokens, ``vocabulary_size`` is one more than the
    highest id, and ``unknown_id`` the id of what the vocabulary lacks, if there is one.
    """

    @property
    def special_ids(self) -> set[int]: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def unknown_id(self) -> int | None: ...

    def encode(self, texts: Sequence[str]) -> list[TokenisedText]:
        """Tokenise texts, in order."""


class FastTokenizer:
    """A tokenizer of the tokenizers package; 20 us for a short text."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, *, token_types: bool = False) -> None:
        tokenizer.no_padding()
        side = (tokenizer.truncation or {"direction": "right"})["direction"]
        tokenizer.enable_truncation(max_length, direction=side)
        self._tokenizer, self._max_length, self._token_types = tokenizer, max_length, token_types
        self._cuts_end = side == "right"
        self._margin_words = _margin_words(tokenizer)
        self._template_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
        self._blank_ids = {
            index
            for token, index in tokenizer.get_vocab(with_added_tokens=False).items()
            if not token.translate(_BLANK_MARKS).strip()
        }

    @property
    def special_ids(self) -> set[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {index for index, token in added.items() if token.special}

    @property
    def vocabulary_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def unknown_id(self) -> int | None:
        model = json.loads(self._tokenizer.to_str())["model"]
        if "unk_id" in model:
            return cast("int | None", model["unk_id"])
        token = model.get("unk_token")
        return None if token is None else self._tokenizer.token_to_id(token)

    def encode(self, texts: Sequence[str]) -> list[TokenisedText]:
        starts = [self._sufficient_start(text) for text in texts]
        # "fast" omits the offsets, which are not needed.
        encodings = self._tokenizer.encode_batch_fast(starts)
        return [self._to_tokenised_text(encoding) for encoding in encodings]

    def _to_tokenised_text(self, encoding: Encoding) -> TokenisedText:
        ids = encoding.ids
        return TokenisedText(
            ids,
            encoding.type_ids if self._token_types else (),
            len(ids) >= self._max_length and bool(encoding.overflowing),
            len(ids) <= self._template_tokens + _MAX_BLANK_TOKENS and self._is_blank(encoding),
        )

    def _is_blank(self, encoding: Encoding) -> bool:
        """Return whether all of its tokens are special ones or blanks."""
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return all(index in self._blank_ids for index, special in pairs if not special)

    def _sufficient_start(self, text: str) -> str:
        """Return a start of a long text that has the same tokens up to the maximum length.

        A tokenizer splits a text into words first, so a cut changes only the words next to it. A
        start suffices if its last words are beyond the maximum length. A tokenizer without words
        gets the whole text.
        """
        chars = _CHARS_PER_TOKEN * self._max_length
        while self._cuts_end and 2 * chars < len(text):
            start = text[:chars]
            (encoding,) = self._tokenizer.encode_batch([start])
            if encoding.overflowing:
                left_words = _last_word(encoding.overflowing[-1]) - _last_word(encoding)
                if left_words >= self._margin_words:
                    return start
            chars *= 4
        return text


class PythonTokenizer:
    """A tokenizer of transformers that has no fast form; some hundred times slower.

    Args:
        tokenizer: A transformers.PreTrainedTokenizerBase.
        max_length: The most tokens of a text, special tokens included.
        token_types: Whether to return them.

    """

    def __init__(self, tokenizer: Any, max_length: int, *, token_types: bool = False) -> None:  # noqa: ANN401
        self._encode = partial(
            tokenizer,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=token_types,
            return_attention_mask=False,
            return_overflowing_tokens=True,
            verbose=False,
        )
        self._tokenizer, self._max_length = tokenizer, max_length
        self._cuts_end = tokenizer.truncation_side == "right"
        self._template = self._encode("")["input_ids"]

    @property
    def special_ids(self) -> set[int]:
        return set(self._tokenizer.all_special_ids)

    @property
    def vocabulary_size(self) -> int:
        return max(len(self._tokenizer), *self.special_ids) if self.special_ids else 1

    @property
    def unknown_id(self) -> int | None:
        return cast("int | None", self._tokenizer.unk_token_id)

    def encode(self, texts: Sequence[str]) -> list[TokenisedText]:
        return [self._to_tokenised_text(text) for text in texts]

    def _to_tokenised_text(self, text: str) -> TokenisedText:
        encoding = self._encode_start(text)
        ids = [*encoding["input_ids"]]
        return TokenisedText(
            ids,
            [*encoding.get("token_type_ids", ())],
            bool(encoding.get(_OVERFLOW)),
            ids == self._template,
        )

    def _encode_start(self, text: str) -> Any:  # noqa: ANN401  transformers has no types
        """Encode a text; of a long one only a start that has the same tokens."""
        chars = _CHARS_PER_TOKEN * self._max_length
        while self._cuts_end and 2 * chars < len(text):
            encoding = self._encode(text[:chars])
            if len(encoding.get(_OVERFLOW, ())) >= _MARGIN_TOKENS:
                return encoding
            chars *= 4
        return self._encode(text)


def load_tokenizer(folder: Path, settings: TokenizationSettings, max_length: int) -> TextTokenizer:
    """Load a registered model's tokenizer."""
    if settings.backend == "tokenizers":
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        return FastTokenizer(tokenizer, max_length, token_types=settings.token_types)
    load: Callable[..., Any] = import_module("transformers").AutoTokenizer.from_pretrained
    return PythonTokenizer(
        load(folder, local_files_only=True, trust_remote_code=False),
        max_length,
        token_types=settings.token_types,
    )


def _margin_words(tokenizer: Tokenizer) -> int:
    """Return how many words a cut may change: one, or as many as the longest added token covers."""
    added = tokenizer.get_added_tokens_decoder().values()
    return 1 + max((len(token.content) for token in added), default=0)


def _last_word(encoding: Encoding) -> int:
    return max((word for word in encoding.word_ids if word is not None), default=0)
