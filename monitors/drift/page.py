"""The drift report as one HTML page that contains its plots, in a light and a dark theme."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from monitors.drift.distributions import Distribution
from monitors.drift.report import DriftReport, VersionReport

# The features with a line in a timeline, likely causes first.
_LINES = 4
# Plots are drawn in these, which are then replaced by the colours of the page's theme.
_COLOURS = {
    "ink": "#010101",
    "quiet": "#020202",
    "good": "#030303",
    "bad": "#040404",
    "line1": "#050505",
    "line2": "#060606",
    "line3": "#070707",
    "line4": "#080808",
}
_INK, _QUIET, _GOOD, _BAD = (_COLOURS[name] for name in ("ink", "quiet", "good", "bad"))

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Drift: {{ report.versions|map(attribute="model")|unique|join(", ") }}</title>
<style>
:root { --page: #ffffff; --ink: #30363d; --quiet: #8c959f; --rule: #d0d7de; --good: #1a7f5a; --bad: #b3261e;
  --line1: #0b62c4; --line2: #b45f06; --line3: #6f42c1; --line4: #1a7f5a }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --ink: #d5dbe1; --quiet: #8b949e; --rule: #30363d;
  --good: #4cc38a; --bad: #ff7b72; --line1: #6cb0ff; --line2: #f0a35e; --line3: #c297ff; --line4: #4cc38a } }
body { font: 15px/1.5 system-ui, sans-serif; background: var(--page); color: var(--ink); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 3rem; border-bottom: 1px solid var(--rule) } h3 { margin: 0 }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600 }
td, th { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums }
.verdict { display: inline-block; padding: .1rem .8rem; border-radius: 1rem; border: 1px solid currentColor }
.bad { color: var(--bad); font-weight: 600 } .good { color: var(--good) } .unknown { color: var(--quiet) }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1.5rem; margin: 1.5rem 0 }
svg { max-width: 100%; height: auto } .wide svg { width: 100% }
.small { color: var(--quiet); font-size: 13px; overflow-wrap: anywhere }
</style></head><body>
<h1>Drift</h1>
<p>Windows since {{ at(report.since) }} in {{ report.archive }}; created {{ at(report.made_at) }}.
{% if report.unreadable %}<b class="bad">{{ report.unreadable }} profiles cannot be read and are left out.</b>{% endif %}</p>
{% for version, timeline, plots in versions %}
<h2>{{ version.model }}:{{ version.version }}, {{ version.arm }}</h2>
<p><span class="verdict {{ style(version.drifted) }}">{{ word(version.drifted) }}</span>
{{ version.rows }} answers in {{ version.windows|length }} windows of {{ version.hosts|length }} hosts,
{{ at(version.started_at) }} to {{ at(version.ended_at) }}.
{% if version.report %}Baseline: the rows of validation report {{ version.report }}.
{% else %}<b>No baseline: {{ version.reason }}.</b> The distributions below come without a verdict.{% endif %}</p>
{% if version.report %}
<table><tr><th>feature, likely causes first</th><th></th><th class="n">effect</th><th class="n">p-value</th><th>details</th></tr>
{% for feature in version.features %}{% set of = feature.verdict %}<tr><td>{{ feature.name }}</td>
{% if of %}<td class="{{ style(of.drifted) }}">{{ word(of.drifted) }}</td>
<td class="n">{{ "%.3f"|format(of.effect) }}</td><td class="n">{{ "%.2g"|format(of.p_value) }}</td>
<td class="small">{% for name, value in of.details.items() %}{{ name }} {{ value if value is string else "%.4g"|format(value) }}{{ "" if loop.last else ", " }}{% endfor %}</td>
{% else %}<td class="unknown">not in the baseline</td><td></td><td></td><td></td>{% endif %}</tr>
{% endfor %}</table>
<div class="wide">{{ timeline }}</div>
{% endif %}
<div class="plots">{{ plots }}</div>
<table><tr><th>window ended</th><th>host</th><th class="n">answers</th><th></th><th class="n">largest effect</th></tr>
{% for window in version.windows|reverse %}<tr><td>{{ at(window.ended_at) }}</td><td>{{ window.host }}</td>
<td class="n">{{ window.rows }}</td><td class="{{ style(window.drifted) }}">{{ word(window.drifted) }}</td>
<td class="n">{% if window.effects %}{{ "%.3f"|format(window.effects.values()|max) }}{% endif %}</td></tr>
{% endfor %}</table>
{% endfor %}
<p class="small">The verdict on a version judges all of its windows together: a feature drifts if its effect is at
least {{ report.min_effect }} (drift.min_effect), and its p-value, corrected for all features, at most
{{ report.false_discovery_rate }} (drift.false_discovery_rate). The verdict on a window is the server's, which judges
every window and so needs smaller p-values, counted from the first window here. The outermost bins also hold the numbers
beyond them.</p>
</body></html>
"""


def render(report: DriftReport) -> str:
    """Return the page."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    with mpl.rc_context():
        _set_style()
        versions = [
            (version, _timeline(version, report), _plots(version)) for version in report.versions
        ]
    return template.render(
        report=report,
        versions=versions,
        at=lambda instant: f"{instant:%Y-%m-%d %H:%M} UTC",
        word=lambda drifted: {None: "not judged", True: "drifted", False: "no drift"}[drifted],
        style=lambda drifted: {None: "unknown", True: "bad", False: "good"}[drifted],
    )


def _set_style() -> None:
    """Keep text searchable, and labels with a $ from being parsed as formulas."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kaiten", "font.size": 9})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"text.parse_math": False, "text.color": _INK})
    mpl.rcParams.update({"axes.edgecolor": _INK, "axes.labelcolor": _INK})
    mpl.rcParams.update({"xtick.color": _INK, "ytick.color": _INK})


def _plots(version: VersionReport) -> Markup:
    """Draw each feature's distribution over that of the baseline."""
    return Markup("").join(
        _draw_svg(
            partial(_overlay, name=feature.name, shares=feature.distribution),
            _plot_size(feature.distribution),
        )
        for feature in version.features
    )


def _plot_size(shares: Distribution) -> tuple[float, float]:
    return 4.2, 2.6 if shares.edges else 1.2 + 0.2 * len(shares.names)


def _overlay(axes: Axes, name: str, shares: Distribution) -> None:
    if shares.edges is not None:
        if shares.baseline is not None:
            axes.stairs(shares.baseline, shares.edges, fill=True, color=_QUIET, alpha=0.5)
        axes.stairs(shares.current, shares.edges, color=_COLOURS["line1"], linewidth=1.5)
        axes.set_ylabel("share")
    else:
        places = range(len(shares.names))
        if shares.baseline is not None:
            axes.barh(places, shares.baseline, height=0.8, color=_QUIET, alpha=0.5)
        axes.barh(places, shares.current, height=0.35, color=_COLOURS["line1"])
        axes.set_yticks(places, shares.names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("share")
    against = "" if shares.baseline is None else "; grey: baseline"
    axes.set_title(f"{name} (line: these windows{against})", loc="left", fontsize=9)


def _timeline(version: VersionReport, report: DriftReport) -> Markup:
    """Draw the effects of the likeliest causes over time, and mark the windows that drifted."""
    return _draw_svg(partial(_effects, version=version, report=report), (9.5, 2.8))


def _effects(axes: Axes, version: VersionReport, report: DriftReport) -> None:
    names = [feature.name for feature in version.features if feature.verdict is not None][:_LINES]
    for host in version.hosts:
        windows = [window for window in version.windows if window.host == host]
        times: Any = [window.ended_at for window in windows]
        for place, name in enumerate(names, 1):
            effects = [window.effects.get(name, float("nan")) for window in windows]
            label = name if host == version.hosts[0] else None
            axes.plot(
                times, effects, ".-", color=_COLOURS[f"line{place}"], linewidth=1, label=label
            )
    axes.axhline(report.min_effect, color=_QUIET, linewidth=1, linestyle="--", label="min_effect")
    # Windows that drifted come last, on top of others of the same time.
    ordered = sorted(version.windows, key=lambda window: bool(window.drifted))
    ends: Any = [window.ended_at for window in ordered]
    colours = [_BAD if window.drifted else _GOOD for window in ordered]
    axes.scatter(ends, [-0.06] * len(ordered), c=colours, marker="s", s=14)
    axes.set(ylim=(-0.12, 1.02), ylabel="effect")
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_title("Windows of each host; red squares drifted", loc="left", fontsize=9)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _draw_svg(draw: Callable[[Axes], object], size: tuple[float, float]) -> Markup:
    """Return a figure as SVG in the colours of the page, without the header of a file."""
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    draw(axes)
    out = io.StringIO()
    # Without metadata, whose vocabulary names look like addresses.
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, stand_in in _COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return Markup(svg)  # noqa: S704  matplotlib escapes its texts
