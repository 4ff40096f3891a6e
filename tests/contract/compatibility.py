"""Find the changes of an OpenAPI document that would break callers of the old one.

A request may require less than before, and an answer may hold more. Every other change is reported
with its place: the wire format of a version is frozen, and such a change needs a new version.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Any
# How a bound of a request may move: a smaller least or a greater most takes more than before.
_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_EXACT = ("type", "const", "pattern", "format", "multipleOf", "uniqueItems")


@dataclass(frozen=True, slots=True)
class _Side:
    """A part of one document, and what its references are looked up in."""

    part: Json
    document: Json

    def of(self, part: Json) -> "_Side":
        return _Side(part, self.document)

    def resolve(self) -> Json:
        """Return a schema with its references followed, and laid together what it is all of."""
        schema = dict(self.part)
        parts = [*schema.pop("allOf", [])]
        if "$ref" in schema:
            parts.append(_follow(schema.pop("$ref"), self.document))
        for part in parts:
            schema = _merge(schema, self.of(part).resolve())
        return schema


def breaks(old: Json, new: Json) -> list[str]:
    """Return a line for each breaking change, none if every caller of the old document works."""
    return [*_paths(old, new)]


def _paths(old: Json, new: Json) -> Iterator[str]:
    for path, operations in old["paths"].items():
        for method, was in operations.items():
            place = f"{method.upper()} {path}"
            now = new["paths"].get(path, {}).get(method)
            if now is None:
                yield f"{place}: is gone"
                continue
            alternatives = now.get("security", [])
            if alternatives and not all(
                requirement in alternatives for requirement in was.get("security", [])
            ):
                yield f"{place}: asks for other credentials"
            if alternatives and not was.get("security", []):
                yield f"{place}: asks for credentials"
            yield from _parameters(place, _Side(was, old), _Side(now, new))
            yield from _body(place, _Side(was, old), _Side(now, new))
            yield from _answers(place, _Side(was, old), _Side(now, new))


def _parameters(place: str, old: _Side, new: _Side) -> Iterator[str]:
    was, now = (
        {(spec["in"], spec["name"]): spec for spec in side.part.get("parameters", [])}
        for side in (old, new)
    )
    for key, parameter in was.items():
        if key not in now:
            yield f"{place}: the parameter {key[1]} is gone"
            continue
        sides = old.of(parameter["schema"]), new.of(now[key]["schema"])
        yield from _request(f"{place}: {key[1]}", *sides)
    for key, parameter in now.items():
        is_required = parameter.get("required", False)
        if is_required and not was.get(key, {}).get("required", False):
            yield f"{place}: the parameter {key[1]} is newly required"


def _body(place: str, old: _Side, new: _Side) -> Iterator[str]:
    was, now = (side.part.get("requestBody", {}) for side in (old, new))
    if now.get("required", False) and not was.get("required", False):
        yield f"{place}: a body is newly required"
    for kind, media in was.get("content", {}).items():
        if kind not in now.get("content", {}):
            yield f"{place}: {kind} is no longer taken"
            continue
        sides = old.of(media["schema"]), new.of(now["content"][kind]["schema"])
        yield from _request(f"{place}: body", *sides)


def _answers(place: str, old: _Side, new: _Side) -> Iterator[str]:
    for status, was in old.part["responses"].items():
        status_place = f"{place}: {status}"
        now = new.part["responses"].get(status)
        if now is None:
            yield f"{status_place} is gone"
            continue
        for name, header in was.get("headers", {}).items():
            if name not in now.get("headers", {}):
                yield f"{status_place}: the header {name} is gone"
                continue
            yield from _header(
                f"{status_place}: {name}", old.of(header), new.of(now["headers"][name])
            )
        for kind, media in was.get("content", {}).items():
            if kind not in now.get("content", {}):
                yield f"{status_place}: {kind} is no longer given"
                continue
            sides = old.of(media["schema"]), new.of(now["content"][kind]["schema"])
            yield from _response(status_place, *sides)


def _header(place: str, old: _Side, new: _Side) -> Iterator[str]:
    was, now = old.resolve(), new.resolve()
    if was.get("required", False) and not now.get("required", False):
        yield f"{place}: is no longer sure"
    yield from _response(place, old.of(was["schema"]), new.of(now["schema"]))


def _request(place: str, old: _Side, new: _Side) -> Iterator[str]:
    """Yield the requests that the new document no longer accepts."""
    was, now = old.resolve(), new.resolve()
    yield from _exact_changes(place, was, now)
    yield from _narrowed_bounds(place, was, now)
    for name in _missing_items(now, was, "required"):
        yield f"{place}.{name}: is newly required"
    if now.get("additionalProperties") is False:
        for name in _missing_items(was, now, "properties"):
            yield f"{place}.{name}: is gone"
        if was.get("additionalProperties") is not False:
            yield f"{place}: unknown fields are newly refused"
    for inner, old_part, new_part in _parts(place, old.of(was), new.of(now)):
        yield from _request(inner, old_part, new_part)


def _response(place: str, old: _Side, new: _Side) -> Iterator[str]:
    """Yield the guarantees about an answer that the new document no longer gives.

    Only values may be added where they were counted up: a code of an error, whose status tells
    callers what to do.
    """
    was, now = old.resolve(), new.resolve()
    yield from _exact_changes(place, was, now)
    yield from _narrowed_bounds(place, {**now, "enum": []}, {**was, "enum": []})
    if "enum" in was:
        for value in was["enum"] if "enum" not in now else _missing_items(was, now, "enum"):
            yield f"{place}: {value!r} is gone"
    for name in _missing_items(was, now, "properties"):
        yield f"{place}.{name}: is gone"
    for name in _missing_items(was, now, "required"):
        yield f"{place}.{name}: is no longer sure"
    for inner, old_part, new_part in _parts(place, old.of(was), new.of(now)):
        yield from _response(inner, old_part, new_part)


def _exact_changes(place: str, was: Json, now: Json) -> Iterator[str]:
    for key in _EXACT:
        if was.get(key) != now.get(key):
            yield f"{place}: {key} is {now.get(key)!r}, was {was.get(key)!r}"
    if len(was.get("anyOf", [])) != len(now.get("anyOf", [])):
        yield f"{place}: is one of other types"


def _narrowed_bounds(place: str, wide: Json, narrow: Json) -> Iterator[str]:
    """Tell of each bound that leaves less room in the second."""
    for key in (*_LEAST, *_MOST):
        if key in narrow and _closer(key, wide.get(key), narrow[key]):
            yield f"{place}: {key} is {narrow[key]} and {wide.get(key)}"
    if "enum" in narrow and "enum" not in wide:
        yield f"{place}: only some values are taken"
    for value in _missing_items(wide, narrow, "enum") if "enum" in narrow else ():
        yield f"{place}: {value!r} is gone"


def _missing_items(first: Json, second: Json, key: str) -> list[Json]:
    """Return what the first has under the key, and the second has not."""
    return [item for item in first.get(key, []) if item not in second.get(key, [])]


def _parts(place: str, old: _Side, new: _Side) -> Iterator[tuple[str, _Side, _Side]]:
    """Yield the schemas inside both, in pairs."""
    was, now = old.part, new.part
    for name, schema in was.get("properties", {}).items():
        if name in now.get("properties", {}):
            yield f"{place}.{name}", old.of(schema), new.of(now["properties"][name])
    if "items" in was and "items" in now:
        yield f"{place}[]", old.of(was["items"]), new.of(now["items"])
    for index, pair in enumerate(zip(was.get("anyOf", []), now.get("anyOf", []), strict=False)):
        yield f"{place}|{index}", old.of(pair[0]), new.of(pair[1])


def _closer(key: str, was: float | None, now: float) -> bool:
    if was is None:
        return True
    return now > was if key in _LEAST else now < was


def _follow(reference: str, document: Json) -> Json:
    node = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def _merge(first: Mapping[str, Json], second: Mapping[str, Json]) -> dict[str, Json]:
    """Lay two schemas together; of a field that both know, what both say of it."""
    first_properties, second_properties = first.get("properties", {}), second.get("properties", {})
    shared = {
        name: {"allOf": [first_properties[name], second_properties[name]]}
        for name in first_properties
        if name in second_properties
    }
    merged = {**second, **first}
    if first_properties or second_properties:
        merged["properties"] = {**second_properties, **first_properties, **shared}
    return merged
