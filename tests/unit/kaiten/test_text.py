import unicodedata

import pytest

from kaiten.text import text_problem

INVISIBLE = [
    "\u200b",
    "\u200b\u200c\u200d\u2060\ufeff",
    "\u0001\u0007\u001b\u007f\u0085",
    "\u00ad\u034f",
    "\u202e\u202c \u200f",
    "\ufe0f",
    "\u3164\uffa0",
    "\U000e0001\U000e0041\U000e0fff",
    "\u180e \t\n",
]


@pytest.mark.parametrize("text", INVISIBLE)
def test_invisible_text_is_rejected(text: str) -> None:
    assert text_problem(text) == "contains no visible character"
    assert text_problem(f"{text}a{text}") is None


@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\u00a0\u3000\u2003"])
def test_blank_text_is_refused(text: str) -> None:
    assert text_problem(text) == "is empty"


def test_letters_numbers_marks_and_symbols_are_visible() -> None:
    fillers = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0}
    selectors = {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
    for point in range(0x110000):
        if unicodedata.category(chr(point))[0] in "LNMPS" and point not in fillers | selectors:
            assert text_problem(chr(point)) is None, hex(point)


def test_emoji_of_a_newer_unicode_is_visible() -> None:
    assert text_problem("\U0001fae9\U0001faff") is None
