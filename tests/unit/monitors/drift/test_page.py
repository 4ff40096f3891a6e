import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from kaiten.settings.models import DriftSettings
from monitors.drift.page import render
from monitors.drift.report import Baseline, DriftReport, version_report
from monitors.drift.whylogs_profiles import Profile
from tests.unit.monitors.drift.archived import ROWS, SOURCE, START, window, windows
from tests.unit.monitors.drift.profiles import answers, usual

RANDOM = np.random.default_rng(20261128)
SETTINGS = DriftSettings()
LONG = RANDOM.gamma(4, 60, ROWS).round()
ODD = "<script>alert($1)</script> & $x_1$"


def report(baseline: Baseline | str, unreadable: int = 0) -> DriftReport:
    profiles = [*windows(RANDOM, 2), window(RANDOM, 2, text_length=LONG)]
    version = version_report(SOURCE, profiles, baseline, SETTINGS)
    assert version is not None
    return DriftReport(
        made_at=datetime(2026, 11, 28, 12, tzinfo=UTC),
        since=START,
        archive="s3://bucket/<prefix>",
        min_effect=SETTINGS.min_effect,
        false_discovery_rate=SETTINGS.false_discovery_rate,
        unreadable=unreadable,
        versions=(version,),
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render(report(Baseline("report-1", usual(RANDOM, 3000))))


@pytest.fixture(scope="module")
def odd_page() -> str:
    """Return the page of a version with a label of special characters, and damaged profiles."""
    label = np.array([ODD] * ROWS)
    baseline = Baseline("report-1", Profile.of(answers(RANDOM, ROWS, label=label)))
    return render(report(baseline, unreadable=2))


class Elements(HTMLParser):
    """What a page is made of, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_the_verdict_and_its_cause_first(page: str) -> None:
    text = Elements(page).text
    assert "intent:1.0.0, production" in text
    assert "3000 answers in 3 windows" in text
    assert "Baseline: the rows of validation report report-1" in text
    features = re.findall(r"^(text_length|token_count|confidence|label)$", text, re.MULTILINE)
    assert features[0] == "text_length"
    assert "baseline_median" in text


@pytest.mark.parametrize("name", ["text_length", "confidence", "label"])
def test_each_feature_is_drawn_over_its_baseline(name: str, page: str) -> None:
    elements = Elements(page)
    # One for each feature, and the time line.
    assert elements.tags.count("svg") == 10
    assert f"{name} (line: these windows; grey: baseline)" in elements.text


def test_a_page_asks_nobody_and_runs_nothing(odd_page: str) -> None:
    elements = Elements(odd_page)
    assert "script" not in elements.tags
    assert not [link for link in elements.links if link and not link.startswith("#")]
    assert not re.findall(r"url\((?!#)", odd_page)
    # Names of vocabularies alone look like addresses.
    assert set(re.findall(r"\bhttps?://[^\s\"'<]+", odd_page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_what_stands_in_a_label_is_text(odd_page: str) -> None:
    assert "<script>" not in odd_page
    assert ODD in Elements(odd_page).text
    assert "s3://bucket/<prefix>" in Elements(odd_page).text


def test_colours_are_those_of_the_page_in_light_and_dark(page: str) -> None:
    body = page[page.index("</style>") :]
    used = set(re.findall(r"var\(--(\w+)\)", body))
    assert {"ink", "quiet", "good", "line1"} <= used
    light, dark = page.split("prefers-color-scheme: dark")
    assert all(f"--{name}:" in light and f"--{name}:" in dark for name in used)
    assert not re.findall(r"#0\d0\d0\d\b", page)


def test_a_version_without_a_baseline_says_so_plainly() -> None:
    elements = Elements(render(report("it was never validated")))
    assert "No baseline: it was never validated." in elements.text
    assert "not judged" in elements.text
    assert "no drift" not in elements.text
    assert elements.tags.count("svg") == 9


def test_unreadable_profiles_are_counted(page: str, odd_page: str) -> None:
    assert "2 profiles cannot be read" in Elements(odd_page).text
    assert "cannot be read" not in page
