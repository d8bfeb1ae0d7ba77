"""The samples of a WebDataset shard: the files of a tar that share a name up to its first dot.

Source: webdataset/tariterators.py (`base_plus_ext`, `group_by_keys`) and webdataset/autodecode.py (`decoders`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from natix_hf.errors import DataError, cut, first_line

_NUMBER = ("cls", "cls2", "class", "count", "index", "inx", "id")
_JSON = ("json", "jsn")
_TEXT = ("txt", "text", "transcript")


def group_samples(members: Sequence[str]) -> dict[str, dict[str, str]]:
    """Group the members of one shard into samples, as `{key: {field: member}}` in stored order.

    The key is the path up to the first dot of the file's name. The field is the rest, in lower case: "a/7.seg.PNG" is
    the field "seg.png" of the sample "a/7". Hidden files and files without an ending belong to no sample.

    Raises:
        DataError: If a sample has a field twice.
    """
    samples: dict[str, dict[str, str]] = {}
    for member in members:
        key, field = _key_and_field(member)
        if not key or not field:
            continue
        sample = samples.setdefault(key, {})
        if field in sample:
            raise DataError(
                f"{cut(sample[field])} and {cut(member)} are the same field of one sample: rename one of them"
            )
        sample[field] = member
    return samples


def is_webdataset(members: Sequence[str], pictures: Collection[str]) -> bool:
    """Whether most pictures of one archive have a file beside them that can hold a label: .cls, .json, .txt or alike.

    Sidecars in class folders look the same. The caller must ask for class folders first.
    """
    told = {key for key, field in map(_key_and_field, members) if _kind(field) in _NUMBER + _JSON + _TEXT}
    keys = [_key_and_field(picture)[0] for picture in pictures]
    return sum(key in told for key in keys) > len(keys) / 2


def sample_values(fields: dict[str, bytes], key: str = "") -> dict[str, Any]:
    """Read the fields of a sample that hold values. Other fields, such as pictures, are passed over.

    A .cls field is an integer where it is one, else text; .txt is text. An object in .json gives a value for each of
    its keys, nested keys joined by dots; a field such as "meta.json" puts "meta." before them.

    Args:
        fields: The bytes of each field, as `group_samples` names the fields.
        key: The sample's key, to name the member in errors.

    Raises:
        DataError: If a field is not UTF-8, its JSON cannot be read, or two fields give the same name.
    """
    values: dict[str, Any] = {}
    for field, data in fields.items():
        kind = _kind(field)
        if kind not in _NUMBER + _JSON + _TEXT:
            continue
        member = f"{key}.{field}" if key else field
        found = _read(member, field, kind, data)
        twice = sorted(values.keys() & found.keys())
        if twice:
            raise DataError(
                f"{cut(member)} gives {cut(twice[0])}, which another file of this sample gives too: rename one"
            )
        values |= found
    return values


def _read(member: str, field: str, kind: str, data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_once) if kind in _JSON else text.strip()
        if isinstance(value, dict):
            return _once(_flat(value, field.removesuffix(kind)))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a key twice, or nested too deep
        raise DataError(f"{cut(member)} cannot be read ({first_line(error)}): repair it") from None
    whole = kind in _NUMBER and re.fullmatch("[+-]?[0-9]{1,18}", value)
    return {field: int(value) if whole else value}


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it gives {cut(name)} twice")
        values[name] = value
    return values


def _flat(value: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _key_and_field(member: str) -> tuple[str, str]:
    folder, slash, name = member.rpartition("/")
    stem, _, field = name.partition(".")
    return (folder + slash + stem if stem else ""), field.lower()


def _kind(field: str) -> str:
    return field.rpartition(".")[2]
