"""Renders a validation report as one self-contained HTML page."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lifecycle.evaluate.measures import ClassificationMeasures
from lifecycle.evaluate.report import ValidationReport, most_frequent_mistakes

# The number of labels with the lowest F1, and of mistakes.
_MAX_LISTED = 15
# More labels than this are too many for one matrix: those with the most mistakes are drawn.
_MAX_PLOTTED_LABELS, _PLOTTED_OF_MANY = 100, 60
# In inches. A label's row is as high as its text, and the names take a margin beside the matrix.
_ROW_IN, _MARGIN_IN, _MIN_SIDE_IN = 0.15, 1.8, 4.0
_GOOD, _BAD, _INK = "#1a7f5a", "#b3261e", "#30363d"
# Text stays searchable text, and equal reports make equal files.
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
.wide { overflow-x: auto }
.small { color: #57606a; font-size: 13px; overflow-wrap: anywhere }
</style></head><body>
<h1>{{ report.tag }}</h1>
<p><span class="verdict">{{ "passed" if report.passed else "refused" }}</span>
on {{ report.data.rows }} rows of {{ report.data.file }}, {{ report.at.strftime("%Y-%m-%d %H:%M") }} UTC{% if report.data.labels_were_indices %}. Its labels are indices: 0 stands for
{{ m.per_class|first }}{% endif %}</p>

<h2>Thresholds</h2>
<table><tr><th></th><th class="n">value</th><th class="n">bound</th><th></th><th>setting</th></tr>
{% for check in report.checks %}<tr><td>{{ check.name }}</td><td class="n">{{ "%.4g"|format(check.value) }}</td>
<td class="n">{{ "≥" if check.at_least else "≤" }} {{ "%.4g"|format(check.bound) }}</td>
<td class="{{ "good" if check.passed else "bad" }}">{{ "passed" if check.passed else "refused" }}</td>
<td class="small">{{ check.setting }}</td></tr>
{% endfor %}</table>

<h2>Predictions</h2>
<table><tr><th></th><th class="n">precision</th><th class="n">recall</th><th class="n">F1</th></tr>
{% for name, mean in (("weighted by rows", m.weighted), ("mean over labels", m.macro)) %}
<tr><td>{{ name }}</td><td class="n">{{ "%.3f"|format(mean.precision) }}</td>
<td class="n">{{ "%.3f"|format(mean.recall) }}</td><td class="n">{{ "%.3f"|format(mean.f1) }}</td></tr>{% endfor %}</table>
<div class="plots">{{ calibration_plot }}</div>
<div class="wide">{{ confusion_plot }}</div>
{% if report.estimate_error is not none %}<p>The accuracy estimate without labels (CBPE) is off by
{{ "%.3f"|format(report.estimate_error) }} on average, measured on windows of these rows that it was not fitted on.</p>{% endif %}

{% if report.comparison %}{% set c = report.comparison %}<h2>Compared with {{ c.baseline }}</h2>
<p>Accuracy differs by <b>{{ "%+.2f"|format(100 * c.difference) }} points</b>, 95 % interval
{{ "%+.2f"|format(100 * c.low) }} to {{ "%+.2f"|format(100 * c.high) }}. Only this version is correct on
{{ c.only_candidate_correct }} rows, only {{ c.baseline }} on {{ c.only_baseline_correct }}; McNemar's p =
{{ "%.3g"|format(c.p_value) }}.</p>{% endif %}

<h2>Labels with the lowest F1</h2>
<table><tr><th>label</th><th class="n">rows</th><th class="n">precision</th><th class="n">recall</th>
<th class="n">F1</th></tr>
{% for name, averages in weakest %}<tr><td>{{ name }}</td><td class="n">{{ m.support[name] }}</td>
<td class="n">{{ "%.3f"|format(averages.precision) }}</td><td class="n">{{ "%.3f"|format(averages.recall) }}</td>
<td class="n">{{ "%.3f"|format(averages.f1) }}</td></tr>{% endfor %}</table>

{% if mistakes %}<h2>Most frequent mistakes</h2>
<table><tr><th>correct</th><th>predicted</th><th class="n">rows</th></tr>
{% for correct, predicted, rows in mistakes %}<tr><td>{{ correct }}</td><td>{{ predicted }}</td>
<td class="n">{{ rows }}</td></tr>{% endfor %}</table>{% endif %}

{% for column, values in report.slices.items() %}<h2>By {{ column }}</h2>
<table><tr><th>value</th><th class="n">rows</th><th class="n">accuracy</th></tr>
{% for value, (rows, accuracy) in values.items() %}<tr><td>{{ value }}</td><td class="n">{{ rows }}</td>
<td class="n">{{ "%.3f"|format(accuracy) }}</td></tr>{% endfor %}</table>{% endfor %}

<h2>Cost on {{ report.cost.device }}</h2>
<p>One text: median {{ "%.1f"|format(report.cost.latency_p50_ms) }} ms, p99
{{ "%.1f"|format(report.cost.latency_p99_ms) }} ms. Memory of the process
{{ "%.0f"|format(report.cost.memory_mib) }} MiB, files {{ "%.0f"|format(report.cost.size_mib) }} MiB.</p>
{% if report.golden %}<p>Golden rows: {{ report.golden.rows }}, of which wrong:
{{ report.golden.wrong|join(", ") or "none" }}.</p>{% endif %}

<p class="small">Card {{ report.card }}; data {{ report.data.digest }};
{% for name, version in report.versions.items() %}{{ name }} {{ version }}{{ "" if loop.last else ", " }}{% endfor %}.</p>
</body></html>
"""


def render(report: ValidationReport) -> str:
    """Return the page as HTML."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    measures = report.measures
    present = [item for item in measures.per_class.items() if measures.support[item[0]]]
    return template.render(
        report=report,
        m=measures,
        good=_GOOD,
        bad=_BAD,
        calibration_plot=_render_svg(lambda axes: _plot_reliability(axes, report), (4.2, 4.0)),
        confusion_plot=_confusion_svg(measures),
        weakest=sorted(present, key=lambda item: item[1].f1)[:_MAX_LISTED],
        mistakes=most_frequent_mistakes(measures, _MAX_LISTED),
    )


def _plot_reliability(axes: Axes, report: ValidationReport) -> None:
    bins = report.measures.reliability
    confidence, accuracy = [group.confidence for group in bins], [group.accuracy for group in bins]
    max_rows = max(group.rows for group in bins)
    axes.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1)
    axes.plot(confidence, accuracy, color=_INK, linewidth=1)
    sizes = [12 + 90 * group.rows / max_rows for group in bins]
    axes.scatter(confidence, accuracy, s=sizes, color=_GOOD)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.set_title(f"Calibration: error {report.measures.calibration_error:.3f}")


def _confusion_svg(measures: ClassificationMeasures) -> Markup:
    """Return the confusion matrix, as large as its labels need."""
    counts = np.asarray(measures.confusion, dtype=float)
    plotted = _plotted_labels(counts)
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(plotted, plotted)]
    labels = [[*measures.per_class][index] for index in plotted]
    title = "Confusion, share of each row"
    if len(labels) < len(counts):
        title += f": the {len(labels)} of {len(counts)} labels with the most mistakes"

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap="Greens", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="predicted", ylabel="correct", title=title)
        places = range(len(labels))
        # A $ in a label does not begin a formula.
        axes.set_xticks(places, labels, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(places, labels, fontsize=7, parse_math=False)
        # Lines between the rows lead the eye from a cell to its names.
        axes.set_xticks(np.arange(0.5, len(labels) - 1), minor=True)
        axes.set_yticks(np.arange(0.5, len(labels) - 1), minor=True)
        axes.grid(which="minor", color="#eaeef2", linewidth=0.5)
        axes.tick_params(which="minor", length=0)

    side = max(_MIN_SIDE_IN, _MARGIN_IN + _ROW_IN * len(labels))
    return _render_svg(draw, (side, side))


def _plotted_labels(counts: NDArray[np.float64]) -> list[int]:
    """Return the indices of the labels to draw: all, or of too many those with most mistakes."""
    if len(counts) <= _MAX_PLOTTED_LABELS:
        return [*range(len(counts))]
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return sorted(np.argsort(-mistakes, kind="stable")[:_PLOTTED_OF_MANY].tolist())


def _render_svg(draw: Callable[[Axes], Any], size: tuple[float, float]) -> Markup:
    """Return a figure as an SVG element, without the XML header of a file."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.add_subplot())
    out = io.StringIO()
    # The names of vocabularies in the metadata look like URLs.
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = out.getvalue()
    return Markup(svg[svg.index("<svg") :])  # noqa: S704  drawn here
