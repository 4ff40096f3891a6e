"""What the settings are refused for, and everything that a refusal shows."""

import traceback

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.loader import load_settings

SECRET, OTHER = "8f14e45fceea167a5a36dedd4bea2543", "c9f0f895fb98ab9159f51fd0297e236d"


def settings_error() -> InvalidSettings:
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    return caught.value


def fields(error: InvalidSettings) -> list[str]:
    return [detail.field for detail in error.details]


def everything_shown(error: InvalidSettings) -> str:
    return f"{error!r} {error.details} " + "".join(traceback.format_exception(error))
