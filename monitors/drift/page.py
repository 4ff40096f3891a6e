"""The report on drift as one page that needs nothing else: its plots are in it, light and dark."""

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
from monitors.drift.report import Report, VersionReport

# Of the features in a time line, likely causes first, so many have a line.
_LINES = 4
# What is drawn in these stands for a colour of the page, which knows light from dark.
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
<p>Windows since {{ at(report.since) }} in {{ report.archive }}; made {{ at(report.made_at) }}.
{% if report.unreadable %}<b class="bad">{{ report.unreadable }} profiles could not be read and are left out.</b>{% endif %}</p>
{% for each, timeline, plots in versions %}
<h2>{{ each.model }}:{{ each.version }}, {{ each.arm }}</h2>
<p><span class="verdict {{ style(each.drifted) }}">{{ word(each.drifted) }}</span>
{{ each.rows }} answers in {{ each.windows|length }} windows of {{ each.hosts|length }} hosts,
{{ at(each.started_at) }} to {{ at(each.ended_at) }}.
{% if each.reference %}Reference: the rows of report {{ each.reference }}.
{% else %}<b>Nothing to compare with: {{ each.reason }}.</b> What follows is how its answers are distributed,
without a verdict.{% endif %}</p>
{% if each.reference %}
<table><tr><th>feature, likely causes first</th><th></th><th class="n">effect</th><th class="n">p-value</th><th>told by</th></tr>
{% for feature in each.features %}{% set of = feature.verdict %}<tr><td>{{ feature.name }}</td>
{% if of %}<td class="{{ style(of.drifted) }}">{{ word(of.drifted) }}</td>
<td class="n">{{ "%.3f"|format(of.effect) }}</td><td class="n">{{ "%.2g"|format(of.p_value) }}</td>
<td class="small">{% for name, value in of.details.items() %}{{ name }} {{ value if value is string else "%.4g"|format(value) }}{{ "" if loop.last else ", " }}{% endfor %}</td>
{% else %}<td class="unknown">no reference has it</td><td></td><td></td><td></td>{% endif %}</tr>
{% endfor %}</table>
<div class="wide">{{ timeline }}</div>
{% endif %}
<div class="plots">{{ plots }}</div>
<table><tr><th>window ended</th><th>host</th><th class="n">answers</th><th></th><th class="n">largest effect</th></tr>
{% for window in each.windows|reverse %}<tr><td>{{ at(window.ended_at) }}</td><td>{{ window.host }}</td>
<td class="n">{{ window.rows }}</td><td class="{{ style(window.drifted) }}">{{ word(window.drifted) }}</td>
<td class="n">{% if window.effects %}{{ "%.3f"|format(window.effects.values()|max) }}{% endif %}</td></tr>
{% endfor %}</table>
{% endfor %}
<p class="small">The verdict on a version is one look at all of its windows: a feature drifts where its effect is at
least {{ report.min_effect }} (drift.min_effect), and its p-value, corrected for all features, at most
{{ report.false_discovery_rate }} (drift.false_discovery_rate). A window's verdict is that of the watch, which looks
again and again and so asks for more, counted from the first window here. The outermost bins hold what is beyond them.</p>
</body></html>
"""


def render(report: Report) -> str:
    """Return the page."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    with mpl.rc_context():
        _set_style()
        versions = [(each, _timeline(each, report), _plots(each)) for each in report.versions]
    return template.render(
        report=report,
        versions=versions,
        at=lambda instant: f"{instant:%Y-%m-%d %H:%M} UTC",
        word=lambda drifted: {None: "not judged", True: "drifted", False: "no drift"}[drifted],
        style=lambda drifted: {None: "unknown", True: "bad", False: "good"}[drifted],
    )


def _set_style() -> None:
    """Have text stay text, which can be searched for, and is no formula where a label has a $."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kaiten", "font.size": 9})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"text.parse_math": False, "text.color": _INK})
    mpl.rcParams.update({"axes.edgecolor": _INK, "axes.labelcolor": _INK})
    mpl.rcParams.update({"xtick.color": _INK, "ytick.color": _INK})


def _plots(version: VersionReport) -> Markup:
    """Draw each feature's distribution over the reference's."""
    return Markup("").join(
        _drawn(
            partial(_overlaid, name=each.name, of=each.distribution),
            (4.2, 2.6 if each.distribution.edges else 1.2 + 0.2 * len(each.distribution.names)),
        )
        for each in version.features
    )


def _overlaid(axes: Axes, name: str, of: Distribution) -> None:
    if of.edges is not None:
        if of.reference is not None:
            axes.stairs(of.reference, of.edges, fill=True, color=_QUIET, alpha=0.5)
        axes.stairs(of.current, of.edges, color=_COLOURS["line1"], linewidth=1.5)
        axes.set_ylabel("share")
    else:
        places = range(len(of.names))
        if of.reference is not None:
            axes.barh(places, of.reference, height=0.8, color=_QUIET, alpha=0.5)
        axes.barh(places, of.current, height=0.35, color=_COLOURS["line1"])
        axes.set_yticks(places, of.names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("share")
    against = "" if of.reference is None else "; grey: reference"
    axes.set_title(f"{name} (line: these windows{against})", loc="left", fontsize=9)


def _timeline(version: VersionReport, report: Report) -> Markup:
    """Draw the effect of the likeliest causes over time, and which windows drifted."""
    return _drawn(partial(_effects, version=version, report=report), (9.5, 2.8))


def _effects(axes: Axes, version: VersionReport, report: Report) -> None:
    names = [each.name for each in version.features if each.verdict is not None][:_LINES]
    for host in version.hosts:
        own = [window for window in version.windows if window.host == host]
        times: Any = [window.ended_at for window in own]
        for place, name in enumerate(names, 1):
            effects = [window.effects.get(name, float("nan")) for window in own]
            label = name if host == version.hosts[0] else None
            axes.plot(
                times, effects, ".-", color=_COLOURS[f"line{place}"], linewidth=1, label=label
            )
    axes.axhline(report.min_effect, color=_QUIET, linewidth=1, linestyle="--", label="min_effect")
    # Those that drifted come last, over others of the same time.
    windows = sorted(version.windows, key=lambda window: bool(window.drifted))
    ends: Any = [window.ended_at for window in windows]
    colours = [_BAD if window.drifted else _GOOD for window in windows]
    axes.scatter(ends, [-0.06] * len(windows), c=colours, marker="s", s=14)
    axes.set(ylim=(-0.12, 1.02), ylabel="effect")
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_title("Windows of each host; the squares tell which drifted", loc="left", fontsize=9)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _drawn(draw: Callable[[Axes], object], size: tuple[float, float]) -> Markup:
    """Return a figure as SVG in the colours of the page, without what only a file needs."""
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    draw(axes)
    out = io.StringIO()
    # Without its metadata, whose names of vocabularies look like addresses.
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for name, stand_in in _COLOURS.items():
        drawn = drawn.replace(stand_in, f"var(--{name})")
    return Markup(drawn)  # noqa: S704  drawn here, and matplotlib escapes what is in it
