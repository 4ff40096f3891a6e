"""The references are read from the code: comments of settings, and every metric and command."""

from tests.checks.reference import cli_page, metrics_page, settings_page


def test_settings_have_types_bounds_and_defaults() -> None:
    page = settings_page()
    assert "- **`gateway.max_headers`** (integer, at least 10, default `100`): " in page
    assert "`serving.reports`" not in page


def test_metrics_have_types_and_labels() -> None:
    row = "| `model_requests_total` | counter | code, model, route, version | "
    assert any(line.startswith(row) for line in metrics_page().splitlines())


def test_commands_have_examples_and_options_and_internal_ones_are_left_out() -> None:
    page = cli_page()
    assert "## `kaiten token create`" in page
    assert "`--subject" in page
    assert "## `kaiten device`" not in page
