"""Typed result files: frozen dataclasses that are written as JSON and checked when they are read."""

from __future__ import annotations

import dataclasses
import functools
import types
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from natix_hf.errors import VerificationError, cut
from natix_hf.provenance.files import read_json, write_json

# Metadata of a field that the file omits if it is None. Where a file lacks it, the field has its default, or None.
OPTIONAL = {"optional": True}


def formerly(key: str) -> dict[str, str]:
    """Metadata of a field that older files hold under another key."""
    return {"formerly": key}


def before(value: Any) -> dict[str, Any]:
    """Metadata of a field that older files lack: there it has this value, and a file omits it where it has it."""
    return {"before": value}


class Stored:
    """Base of a frozen dataclass that has a file of its own.

    `FILE` is the file's name in the folder. `SCHEMA` is the schema number that is written, and `OLDEST` the oldest one
    that is read. A file without a number has schema 1.
    """

    FILE: ClassVar[str]
    SCHEMA: ClassVar[int] = 1
    OLDEST: ClassVar[int] = 1

    def content(self) -> dict[str, Any]:
        """The content of the file as JSON values."""
        return {"schema": self.SCHEMA, **to_json(self)}

    def write(self, folder: Path) -> None:
        write_json(folder / self.FILE, self.content())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file of this type in `folder`.

        Raises:
            VerificationError: If it is missing, damaged or of another schema. The message names the file.
        """
        path = folder / cls.FILE
        return cls.parse(read_json(path), path)

    @classmethod
    def parse(cls, content: Any, path: Path) -> Self:
        """Build the value from the content of a file. `path` is for the error message.

        Raises:
            VerificationError: If the content is damaged or of another schema.
        """
        schema = content.get("schema", 1) if isinstance(content, dict) else None
        if schema not in range(cls.OLDEST, cls.SCHEMA + 1):
            raise VerificationError(
                f"{path} has schema {cut(schema)}, not {cls.SCHEMA}: read it with the natix_hf version that wrote it"
            )
        try:
            found: Self = from_json(cls, {key: value for key, value in content.items() if key != "schema"})
        except (KeyError, TypeError, ValueError) as error:
            raise VerificationError(f"{path} is damaged: {error}") from None
        return found


def to_json(value: Any) -> Any:
    """Convert a value to plain JSON values. The keys keep the order of the fields."""
    if dataclasses.is_dataclass(value):
        return {
            field.metadata.get("key", field.name): to_json(item)
            for field in dataclasses.fields(value)
            if not _omitted(item := getattr(value, field.name), field)
        }
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _omitted(item: Any, field: dataclasses.Field[Any]) -> bool:
    if "before" in field.metadata:
        return bool(item == field.metadata["before"])
    return item is None and bool(field.metadata.get("optional"))


def from_json(hint: Any, value: Any, where: str = "") -> Any:
    """Build a value of the type `hint` from JSON values. This is the inverse of `to_json`.

    Args:
        hint: A dataclass, `list`, `dict`, `tuple`, `Literal`, an optional one of these, or a plain type.
        value: The JSON value.
        where: Key of the value, for the error message.

    Raises:
        ValueError: If a key is missing or unknown, or a value has another type. The message names the key.
    """
    if dataclasses.is_dataclass(hint):
        return _dataclass_from_json(hint, value, where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        [wanted] = [option for option in arguments if option is not type(None)]
        return from_json(wanted, value, where)
    if origin is Literal:
        fits: bool = value in arguments
    elif origin is list and isinstance(value, list):
        return [from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(from_json(kind, item, where) for kind, item in zip(arguments, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {key: from_json(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = hint is Any or (isinstance(hint, type) and type(value) is hint)
    if not fits:
        raise ValueError(f"{where.lstrip('.') or 'it'} is {cut(str(value))}")
    return value


def _dataclass_from_json(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where.lstrip('.') or 'it'} is {cut(str(value))}")
    hints, left, found = _hints(hint), dict(value), {}
    for field in dataclasses.fields(hint):
        keys = [field.metadata.get("key", field.name), field.metadata.get("formerly")]
        key = next((key for key in keys if key in left), None)
        if key is not None:
            found[field.name] = from_json(hints[field.name], left.pop(key), f"{where}.{key}")
        elif "before" in field.metadata:
            found[field.name] = field.metadata["before"]
        elif field.metadata.get("optional"):
            if field.default is field.default_factory:  # both are missing
                found[field.name] = None
        else:
            raise ValueError(f"it has no {f'{where}.{keys[0]}'.lstrip('.')}")
    if left:
        raise ValueError(f"it has the unknown key {f'{where}.{next(iter(left))}'.lstrip('.')}")
    return hint(**found)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)
