"""The paths of settings, such as ``batching.max_queue_items``: which exist, and which was meant."""

from collections.abc import Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel


class UnknownSetting(Exception):
    """A path that names no setting: its first part that does not, with the ones before it.

    ``section`` is the model that lacks it, None below a setting that has no keys.
    """

    def __init__(self, path: Sequence[str], section: type[BaseModel] | None) -> None:
        super().__init__(".".join(path))
        self.path, self.section = tuple(path), section

    @property
    def closest(self) -> str | None:
        """The name in the same section that is most like the unknown one."""
        names = self.section.model_fields if self.section else ()
        return next(iter(get_close_matches(_folded(self.path[-1]), names, n=1)), None)


def annotation_at(root: type[BaseModel], path: Sequence[str]) -> Any:  # noqa: ANN401
    """Return the type of the setting or section at a path, whose numbers are places in lists.

    Any below a dictionary, whose keys are the operator's own and name no settings.

    Raises:
        UnknownSetting: The path names no setting.

    """
    annotation: Any = root
    for place, part in enumerate(path, start=1):
        inner = _without_none(annotation)
        if dict in {inner, get_origin(inner)}:
            return Any
        if part.isdigit() and (types := get_args(inner) or get_args(annotation)):
            annotation = types[0]
            continue
        section = section_of(inner)
        if section is None or part not in section.model_fields:
            raise UnknownSetting(path[:place], section)
        annotation = section.model_fields[part].annotation
    return annotation


def section_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401
    """Return a type that is a section, None for the type of a setting."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def accepts(annotation: Any, kind: type) -> bool:  # noqa: ANN401
    """Return whether a type is of this kind, or a union with it."""
    return kind in (annotation, *get_args(annotation))


def elsewhere(root: type[BaseModel], name: str) -> str | None:
    """Return the path of a setting of this name in any section, or of a section of this name."""
    if name in root.model_fields:
        return name
    sections = {key: section_of(field.annotation) for key, field in root.model_fields.items()}
    paths = (
        f"{key}.{name}" for key, each in sections.items() if each and name in each.model_fields
    )
    return next(paths, None)


def _without_none(annotation: Any) -> Any:  # noqa: ANN401
    """Return the type of a setting that has to be given, for that of one that may be empty."""
    if get_origin(annotation) not in {Union, UnionType}:
        return annotation
    types = [each for each in get_args(annotation) if each is not NoneType]
    return types[0] if len(types) == 1 else annotation


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
