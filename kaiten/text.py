"""The rules for texts and labels, shared by the API and by the files that versions are measured on.

Each function returns the reason to refuse a text, or None, and never quotes the text.
"""

import re

MAX_LABEL_CHARS = 1000
# White space, control characters, and what Unicode calls default ignorable: zero-width characters,
# variation selectors and tags.
_VISIBLE = re.compile(
    "[^\u0000-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f"
    "\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def text_problem(text: str) -> str | None:
    """Return why the API refuses a text or a label, whatever its length."""
    if not text.strip():
        return "is empty"
    if "\x00" in text:
        return "contains a NUL character"
    if not _VISIBLE.search(text):
        return "contains no visible character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is not valid Unicode"
    return None


def length_problem(text: str, max_chars: int) -> str | None:
    """Return why a text is refused for its length in characters."""
    return f"has over {max_chars} characters" if len(text) > max_chars else None
