"""Looks up settings by path, such as ``batching.max_queue_items``, and suggests close names."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

SettingPath = tuple[str, ...]
# A section and its key.
_SECTION_DEPTH = 2


class UnknownSetting(Exception):
    """A path that names no setting; ``path`` ends with the first part that is unknown.

    ``section`` is the model that lacks this part, None if the part is below a setting, which has no
    keys.
    """

    def __init__(self, path: Sequence[str], section: type[BaseModel] | None) -> None:
        super().__init__(".".join(path))
        self.path, self.section = tuple(path), section

    @property
    def closest(self) -> str | None:
        """The name in the same section that is closest to the unknown one, if any is close."""
        names = self.section.model_fields if self.section else ()
        return next(iter(get_close_matches(_folded(self.path[-1]), names, n=1)), None)


def annotation_at(root: type[BaseModel], path: Sequence[str]) -> Any:  # noqa: ANN401
    """Return the type of the setting or section at a path; numbers in it index lists.

    Below a dictionary, whose keys the operator chooses, any path is accepted, unless its values are
    sections.

    Raises:
        UnknownSetting: The path names neither.

    """
    annotation: Any = root
    for depth, part in enumerate(path, start=1):
        inner = _without_none(annotation)
        if dict in {inner, get_origin(inner)}:
            values = get_args(inner)[1:]
            if not values or section_of(values[0]) is None:
                return Any
            annotation = values[0]
            continue
        if part.isdigit() and (types := get_args(inner) or get_args(annotation)):
            annotation = types[0]
            continue
        section = section_of(inner)
        if section is None or part not in section.model_fields:
            raise UnknownSetting(path[:depth], section)
        annotation = section.model_fields[part].annotation
    return annotation


def intended_path(root: type[BaseModel], error: UnknownSetting) -> SettingPath | None:
    """Return the path of the setting or section that an unknown one is likely to mean.

    That is the same name in another section, a close name in the same section, or a close path.
    """
    paths = {"__".join(path): path for path in all_paths(root)}
    same_name = (path for path in paths.values() if path[-1] == error.path[-1])
    # Deeper, as in an issuer, a name of another section is rarely meant.
    if len(error.path) <= _SECTION_DEPTH and (path := next(same_name, None)):
        return path
    if error.closest:
        return (*error.path[:-1], error.closest)
    closest = get_close_matches("__".join(map(_folded, error.path)), paths, n=1)
    return paths[closest[0]] if closest else None


def section_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401
    """Return the annotation if it is a section's model, None for the type of a setting."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def accepts(annotation: Any, kind: type) -> bool:  # noqa: ANN401
    """Return whether a type is ``kind``, or a union that includes it."""
    return kind in (annotation, *get_args(annotation))


def is_collection(annotation: Any) -> bool:  # noqa: ANN401
    """Return whether a setting of this type holds several values, which a variable has as JSON."""
    inner = _without_none(annotation)
    return (get_origin(inner) or inner) in {dict, list, tuple}


def all_paths(section: type[BaseModel], parents: SettingPath = ()) -> Iterator[SettingPath]:
    """Yield the paths of all sections and settings, from the outside."""
    children = [
        (name, section_of(field.annotation)) for name, field in section.model_fields.items()
    ]
    yield from ((*parents, name) for name, _ in children)
    for name, child in children:
        if child is not None:
            yield from all_paths(child, (*parents, name))


def _without_none(annotation: Any) -> Any:  # noqa: ANN401
    """Return the type of an optional setting without None."""
    if get_origin(annotation) not in {Union, UnionType}:
        return annotation
    types = [member for member in get_args(annotation) if member is not NoneType]
    return types[0] if len(types) == 1 else annotation


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
