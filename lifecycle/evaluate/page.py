"""The report as one page that needs nothing else: its plots are in it."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lifecycle.evaluate.report import Report, worst

# Of the labels with the lowest F1, and of the mistakes, so many are shown.
_SHOWN = 15
_PLOTTED_LABELS = 40
_GOOD, _BAD, _INK = "#1a7f5a", "#b3261e", "#30363d"
# Text stays text, so that it can be searched for, and no time of making is written.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kaiten", "font.size": 9})

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.tag }}: {{ "passed" if report.passed else "refused" }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #30363d; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600 }
td, th { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #eaeef2 }
.n { text-align: right; font-variant-numeric: tabular-nums }
.verdict { display: inline-block; padding: .2rem .8rem; border-radius: 1rem; color: #fff;
  background: {{ good if report.passed else bad }} }
.bad { color: {{ bad }}; font-weight: 600 } .good { color: {{ good }} }
.plots { display: flex; flex-wrap: wrap; gap: 1rem } .plots svg { max-width: 100%; height: auto }
.small { color: #57606a; font-size: 13px; overflow-wrap: anywhere }
</style></head><body>
<h1>{{ report.tag }}</h1>
<p><span class="verdict">{{ "passed" if report.passed else "refused" }}</span>
on {{ report.data.rows }} rows of {{ report.data.file }}, {{ report.at.strftime("%Y-%m-%d %H:%M") }} UTC</p>

<h2>Thresholds</h2>
<table><tr><th></th><th class="n">found</th><th class="n">needed</th><th></th></tr>
{% for check in report.checks %}<tr><td>{{ check.name }}</td><td class="n">{{ "%.4g"|format(check.found) }}</td>
<td class="n">{{ "≥" if check.at_least else "≤" }} {{ "%.4g"|format(check.bound) }}</td>
<td class="{{ "good" if check.passed else "bad" }}">{{ "passed" if check.passed else "refused" }}</td></tr>
{% endfor %}</table>

<h2>Answers</h2>
<table><tr><th></th><th class="n">precision</th><th class="n">recall</th><th class="n">F1</th></tr>
{% for name, of in (("weighted by rows", m.weighted), ("mean over labels", m.macro)) %}
<tr><td>{{ name }}</td><td class="n">{{ "%.3f"|format(of.precision) }}</td>
<td class="n">{{ "%.3f"|format(of.recall) }}</td><td class="n">{{ "%.3f"|format(of.f1) }}</td></tr>{% endfor %}</table>
<div class="plots">{{ plots }}</div>
{% if report.estimate_error is not none %}<p>Without labels, accuracy is estimated from confidence (CBPE): off by
{{ "%.3f"|format(report.estimate_error) }} on average, on windows of these rows that the estimate had not seen.</p>{% endif %}

{% if report.comparison %}{% set c = report.comparison %}<h2>Against {{ c.against }}</h2>
<p>Accuracy differs by <b>{{ "%+.2f"|format(100 * c.difference) }} points</b>, 95 % interval
{{ "%+.2f"|format(100 * c.low) }} to {{ "%+.2f"|format(100 * c.high) }}. Right alone: this one on
{{ c.only_this_right }} rows, {{ c.against }} on {{ c.only_other_right }}; McNemar's p =
{{ "%.3g"|format(c.p_value) }}.</p>{% endif %}

<h2>Labels that do worst</h2>
<table><tr><th>label</th><th class="n">rows</th><th class="n">precision</th><th class="n">recall</th>
<th class="n">F1</th></tr>
{% for name, of in weakest %}<tr><td>{{ name }}</td><td class="n">{{ m.support[name] }}</td>
<td class="n">{{ "%.3f"|format(of.precision) }}</td><td class="n">{{ "%.3f"|format(of.recall) }}</td>
<td class="n">{{ "%.3f"|format(of.f1) }}</td></tr>{% endfor %}</table>

{% if mistakes %}<h2>Mistaken most</h2>
<table><tr><th>right</th><th>answered</th><th class="n">rows</th></tr>
{% for right, answered, rows in mistakes %}<tr><td>{{ right }}</td><td>{{ answered }}</td>
<td class="n">{{ rows }}</td></tr>{% endfor %}</table>{% endif %}

{% for column, values in report.slices.items() %}<h2>By {{ column }}</h2>
<table><tr><th>value</th><th class="n">rows</th><th class="n">accuracy</th></tr>
{% for value, (rows, accuracy) in values.items() %}<tr><td>{{ value }}</td><td class="n">{{ rows }}</td>
<td class="n">{{ "%.3f"|format(accuracy) }}</td></tr>{% endfor %}</table>{% endfor %}

<h2>Cost on {{ report.cost.device }}</h2>
<p>One text: median {{ "%.1f"|format(report.cost.latency_p50_ms) }} ms, p99
{{ "%.1f"|format(report.cost.latency_p99_ms) }} ms. Memory of the process
{{ "%.0f"|format(report.cost.memory_mb) }} MiB, files {{ "%.0f"|format(report.cost.size_mb) }} MiB.</p>
{% if report.golden %}<p>Golden rows: {{ report.golden.rows }}, answered otherwise:
{{ report.golden.wrong|join(", ") or "none" }}.</p>{% endif %}

<p class="small">Card {{ report.card }}; data {{ report.data.digest }};
{% for name, version in report.versions.items() %}{{ name }} {{ version }}{{ "" if loop.last else ", " }}{% endfor %}.</p>
</body></html>
"""


def render(report: Report) -> str:
    """Return the page."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    measures = report.measures
    measured = [(name, of) for name, of in measures.per_class.items() if measures.support[name]]
    return template.render(
        report=report,
        m=measures,
        good=_GOOD,
        bad=_BAD,
        plots=Markup("").join(Markup(plot) for plot in _plots(report)),  # noqa: S704  drawn here
        weakest=sorted(measured, key=lambda pair: pair[1].f1)[:_SHOWN],
        mistakes=worst(measures, _SHOWN),
    )


def _plots(report: Report) -> list[str]:
    return [
        _drawn(lambda axes: _reliability(axes, report), (4.2, 4.0)),
        _drawn(lambda axes: _confusion(axes, report), (4.8, 4.0)),
    ]


def _reliability(axes: Axes, report: Report) -> None:
    bins = report.measures.reliability
    sure, right = [each.confidence for each in bins], [each.accuracy for each in bins]
    most = max(each.rows for each in bins)
    axes.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1)
    axes.plot(sure, right, color=_INK, linewidth=1)
    axes.scatter(sure, right, s=[12 + 90 * each.rows / most for each in bins], color=_GOOD)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.set_title(f"Calibration: error {report.measures.calibration_error:.3f}")


def _confusion(axes: Axes, report: Report) -> None:
    counts = np.asarray(report.measures.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="answered", ylabel="right", title="Confusion, share of each row")
    labels = [*report.measures.per_class]
    if len(labels) <= _PLOTTED_LABELS:
        # A label may have a $ in it, and is no formula.
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)
    else:
        axes.set_xticks([])
        axes.set_yticks([])


def _drawn(draw: Callable[[Axes], Any], size: tuple[float, float]) -> str:
    """Return a figure as SVG, without the header that only a file needs."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.add_subplot())
    out = io.StringIO()
    # Without its metadata, whose names of vocabularies look like addresses.
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :]
