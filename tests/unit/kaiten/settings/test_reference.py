import pytest

from kaiten.errors import SetupError
from kaiten.settings.loader import Settings
from kaiten.settings.reference import find_settings, setting_sections, yaml_comments
from kaiten.settings.secrets import SECRET_SETTINGS
from kaiten.settings.setting_paths import annotation_at, section_of


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


def test_every_setting_is_described() -> None:
    settings = [setting for section in setting_sections() for setting in section.settings]
    assert [setting.path for setting in settings if not setting.description] == []
    assert [setting.path for setting in settings if not setting.types] == []
    # No setting is left out but those that a server sets for its workers.
    assert "serving.reports" not in {setting.path for setting in settings}
    assert {setting.path.partition(".")[0] for setting in settings} == {*Settings.model_fields}
    # Each is one that the loader knows.
    assert not any(section_of(annotation_at(Settings, s.path.split("."))) for s in settings)


def test_secrets_are_known_as_such() -> None:
    settings = [setting for section in setting_sections() for setting in section.settings]
    secrets = {setting.path for setting in settings if setting.is_secret}
    assert secrets == {".".join(path) for path in SECRET_SETTINGS}


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("batching.max_queue_items", ["batching.max_queue_items"]),
        ("KAITEN_BATCHING__MAX_QUEUE_ITEMS", ["batching.max_queue_items"]),
        ("max-queue-items", ["batching.max_queue_items"]),
        ("home", ["home"]),
        ("v1", [f"api_versions.v1.{name}" for name in ("deprecated_at", "sunset_at", "link")]),
        ("tls", ["tls.certificate", "tls.private_key", "tls.client_ca"]),
        ("window_rows", ["drift.window_rows", "feedback.window_rows"]),
        ("KAITEN_AUTH__JWKS__REFRESH_S", ["auth.jwks.refresh_s"]),
    ],
)
def test_setting_is_found_by_path_variable_section_and_name(key: str, paths: list[str]) -> None:
    assert [setting.path for setting in find_settings(key)] == paths


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("batching.max_queue_item", "Did you mean batching.max_queue_items?"),
        ("max_queue_itms", "Did you mean max_queue_items?"),
        ("baching", "Did you mean batching?"),
        ("zzz", "List them with `kaiten config show`."),
        ("", "List them with `kaiten config show`."),
    ],
)
def test_unknown_setting_is_refused_with_the_closest(key: str, remedy: str) -> None:
    with pytest.raises(SetupError, match="is not a setting") as caught:
        find_settings(key)
    assert caught.value.message.endswith(remedy)
