"""A plot without a library: horizontal bars, grouped by shape, readable on light and dark."""

from collections.abc import Mapping
from html import escape

_WIDTH = 760
_LABEL = 190
_ROOM_FOR_VALUES = 60
_BAR = 16
_ROW = 20
_TITLE = 30
_GAP = 14
# Both stand out on white and on black; text takes the reader's own colour.
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.peer { fill: #8c959f }
.own { fill: #d9622b }
.limit { fill: none; stroke: #8c959f; stroke-dasharray: 3 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
"""


def draw(groups: Mapping[str, Mapping[str, float]]) -> str:
    """Return an SVG of texts a second; each group has a scale of its own."""
    parts: list[str] = []
    y = _GAP
    for title, bars in groups.items():
        parts.append(_text(0, y + 12, title, "title"))
        y += _TITLE - 10
        longest = max(bars.values(), default=1.0) or 1.0
        for name, value in bars.items():
            parts += _bar(y, name, value, longest)
            y += _ROW
        y += _GAP
    size = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    label = "<title>Texts a second, by shape and server</title>"
    return "\n".join([head, label, f"<style>{_STYLE}</style>", *parts, "</svg>"]) + "\n"


def _bar(y: int, name: str, value: float, longest: float) -> list[str]:
    width = round((_WIDTH - _LABEL - _ROOM_FOR_VALUES) * value / longest, 1)
    box = f'x="{_LABEL}" y="{y}" width="{width}" height="{_BAR}" rx="2"'
    return [
        _text(_LABEL - 8, y + 12, name, "", anchor="end"),
        f'<rect {box} class="{_kind(name)}"/>',
        _text(_LABEL + width + 6, y + 12, f"{value:.0f}", ""),
    ]


def _kind(name: str) -> str:
    if name.startswith("Kaiten"):
        return "own"
    return "limit" if name == "Offline limit" else "peer"


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'
