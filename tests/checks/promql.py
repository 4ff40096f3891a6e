"""What an expression of PromQL asks for, as far as rules and dashboards need it to be known."""

import re

_SELECTOR = re.compile(r"\b(up|ALERTS|(?:model|kaiten|bentoml)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_GROUPED = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
# A target has these, the last in Kubernetes alone, whatever it exposes.
_OF_TARGETS = {"job", "instance", "namespace"}
_OF_PROMETHEUS = {
    "up": _OF_TARGETS,
    "ALERTS": {*_OF_TARGETS, "alertname", "alertstate", "severity"},
}


def unknown_names(expression: str, exposed: dict[str, set[str]]) -> list[str]:
    """Return the metrics and labels that no server exposes; one without any metric is one too."""
    selectors = _SELECTOR.findall(expression)
    if not selectors:
        return [expression]
    labels_by_metric = {
        name: labels | _OF_TARGETS for name, labels in exposed.items()
    } | _OF_PROMETHEUS
    faults = [name for name, _ in selectors if name not in labels_by_metric]
    selected_labels = set().union(*(labels_by_metric.get(name, set()) for name, _ in selectors))
    for name, matchers in selectors:
        matcher_labels = _MATCHER.findall(matchers)
        faults += [
            f"{name}{{{label}}}"
            for label in matcher_labels
            if label not in labels_by_metric.get(name, {label})
        ]
    for names in _GROUPED.findall(expression):
        labels = [label.strip() for label in names.split(",")]
        faults += [f"by {label}" for label in labels if label not in selected_labels]
    return faults
