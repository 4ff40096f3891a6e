"""The references are read from the code: comments of settings, and every metric and command."""

from tests.checks.reference import cli_page, metrics_page, settings_page, yaml_comments


def test_comment_above_a_key_describes_it_and_those_without_one_that_follow() -> None:
    text = """
# About the file.

section:
  # The first
  # of two.
  first: 1
  second:
  # A mapping.
  nested: {third: 3, fourth: 4}
"""
    comments = yaml_comments(text)
    assert comments["section.first"] == comments["section.second"] == "The first of two."
    assert comments["section.nested.fourth"] == "A mapping."


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
