"""`Section`: a part of a recipe as a dataclass that checks its own values, from YAML and from Python alike.

A key is a field `name: Annotated[type, "Meaning."] = default`. This module imports nothing heavy.
"""

from __future__ import annotations

import copy
import enum
import functools
import keyword
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

from natix_hf.errors import RecipeError, cut, did_you_mean, nearest, require, shortened
from natix_hf.typed import Typed, as_typed, require_plain, untyped

# The metadata of a field that is no key of a recipe.
NOT_A_KEY = {"not_a_key": True}
# The metadata of a key that came after the first version. Manifests and hashes leave it out at its default, so that
# older runs stay current.
LATER = {"later": True}
# Stands in the annotation of a text key whose value comes from the user's data, after the meaning. From Python such a
# key also takes a whole number, true or false, and reads them as the text that a recipe file would hold.
OF_DATA = object()

_LONGEST_LIST = 140  # characters of the keys in a message
# Other names that people use for a key, by the key that they mean.
_ALSO_CALLED = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs n_epochs num_epochs",
    "max_steps": "steps num_steps",
    "per_device_train_batch_size": "batch_size train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "grad_accum accumulate_grad_batches",
    "max_grad_norm": "clip clip_grad gradient_clipping",
    "weight_decay": "wd",
    "warmup_steps": "warmup warmup_ratio",
    "lr_scheduler_type": "scheduler",
    "optim": "optimizer",
    "dataloader_num_workers": "workers num_workers",
    "early_stopping_patience": "patience early_stopping",
    "ema_decay": "ema",
    "adapter": "peft lora tuner",
    "rank": "r lora_r",
    "source": "path folder dataset",
    "label_column": "label",
    "labels": "label_names names id2label",
    "image_column": "image images",
    "group_by": "group groups",
    "target_prior": "prior",
    "augment": "augmentation augmentations",
    "rotate": "rotation",
    "backbone": "checkpoint model_id model_name name path",
    "image_size": "resolution size",
    "method": "calibration",
    "model_name": "name",
    "repo_id": "repo repository",
    "data": "dataset datasets",
    "phase1": "train training baseline",
    "phase2": "threshold",
    "phase3": "gate",
    "phase4": "explora",
    "phase5": "calibration scrc risk",
    "phase6": "export bundle hub",
}


@dataclass(frozen=True)
class Section:
    """A section of a recipe. The constructor checks the type of every key (an int may stand for a float), then calls
    `check`.

    Raises:
        RecipeError: if a value is impossible; the line names key, value and what is allowed.
    """

    place: ClassVar[str] = ""  # the section's place in a recipe, for errors

    def __post_init__(self) -> None:
        of_data = _keys_of_data(type(self))
        for name, hint in key_types(type(self)).items():
            value = getattr(self, _attribute(name))
            value = as_typed(value) if name in of_data else value
            object.__setattr__(self, _attribute(name), coerce(value, hint, self.key(name)))
        self.check()

    def check(self) -> None:
        """Refuse values that have the right type but are impossible. Subclasses call `require` here."""

    def key(self, name: str) -> str:
        """The full name of a key, such as `data.augment.flip`."""
        return f"{self.place}.{name}" if self.place else name

    def require(self, holds: bool, name: str, allowed: str) -> None:
        """Raise a `RecipeError` that names the key `name`, its value and what is allowed, unless `holds` is true."""
        require(holds, self.key(name), getattr(self, _attribute(name)), allowed)

    def require_within(self, name: str, least: float, most: float) -> None:
        """Raise a `RecipeError` unless the number under the key `name` is null, or within bounds that are included."""
        value = getattr(self, _attribute(name))
        self.require(value is None or least <= value <= most, name, f"at least {least:,} and at most {most:,}")

    def plain(self) -> dict[str, Any]:
        """Every key and its value as JSON values, which manifests record and hashes are computed from."""
        kept = [f for f in fields(self) if not _adds_nothing(f, self)]
        return {key_name(f): _without_sections(getattr(self, f.name), as_plain=True) for f in kept}

    def mapping(self) -> dict[str, Any]:
        """Every key and its value as in a recipe file. `build` turns the result into this section again."""
        values = {name: getattr(self, _attribute(name)) for name in key_types(type(self))}
        return {name: _without_sections(value, as_plain=False) for name, value in values.items()}

    @classmethod
    def build(cls, given: Mapping[Any, Any], where: str = "") -> Self:
        """Make the section from a mapping of keys. An empty section such as `phase2:` means its defaults.

        Args:
            where: The place in the recipe, for errors.

        Raises:
            RecipeError: if a key is unknown or a value is impossible.
        """
        hints = key_types(cls)
        values = {
            key: value
            for key, value in given.items()
            if key in hints and not (value is None and _is_section(hints[key]))
        }
        unknown = {key: value for key, value in given.items() if key not in hints}
        if unknown:
            values |= cls._take_unknown(unknown, where)
        if "where" in [f.name for f in fields(cls)]:
            values["where"] = where
        return cls(**{_attribute(name): value for name, value in values.items()})

    @classmethod
    def _take_unknown(cls, given: dict[Any, Any], where: str) -> dict[str, Any]:
        raise unknown_key(next(iter(given)), where, key_types(cls))


def unknown_key(
    key: object, where: str, known: Iterable[str], further: Iterable[str] = (), note: str = ""
) -> RecipeError:
    """The error for an unknown key. It names the closest key, or lists the keys of the section if none is close.

    Args:
        known: The keys of the section.
        further: Keys that the section also takes but that are too many to list.
        note: The end of the list, which mentions `further`.
    """
    known, further = list(known), list(further)
    full = shortened(f"{where}.{key}" if where else str(key))
    word, names = str(key).lower(), [*known, *further]
    close = next((name for name in names if word in _ALSO_CALLED.get(name, "").split()), None) or nearest(word, names)
    if close is not None:
        return RecipeError(f"unknown key {full}, did you mean {cut(close)}?")
    listed = ", ".join(known)
    if len(listed) > _LONGEST_LIST:
        listed = f"{listed[:_LONGEST_LIST].rpartition(',')[0]}, … (`natix-hf keys {where}` lists all)"
    return RecipeError(f"unknown key {full}: the keys of {where or 'a recipe'} are {listed}{note}")


def key_name(key: Field[Any]) -> str:
    """The name of a key in a recipe. A word that Python keeps for itself, such as `from`, is the field `from_`."""
    return key.name.removesuffix("_")


def _attribute(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) else name


def key_types(cls: type[Section]) -> dict[str, Any]:
    """The type of every key of a section."""
    return {key_name(f): _hints(cast(Any, cls))[f.name] for f in fields(cls) if not f.metadata.get("not_a_key")}


def key_meanings(cls: type[Section]) -> dict[str, str]:
    """The meaning of every key of a section. A subclass that only changes a default inherits the meaning."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, hint in _hints(base, include_extras=True).items():
            if get_origin(hint) is Annotated:
                found[name.removesuffix("_")] = hint.__metadata__[0]
    return {name: found.get(name, "") for name in key_types(cls)}


@functools.cache  # every section that is made asks for them
def _hints(cls: Any, include_extras: bool = False) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=include_extras)


def _keys_of_data(cls: type[Section]) -> set[str]:
    """The keys whose annotation holds `OF_DATA`."""
    hints = _hints(cast(Any, cls), True)
    return {name for name, hint in hints.items() if OF_DATA in getattr(hint, "__metadata__", ())}


def section_of(hint: Any) -> type[Section] | None:
    """The section that a key of this type may hold, or None."""
    options = (hint, *get_args(hint))
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)


def item_section_of(hint: Any) -> type[Section] | None:
    """The section that the items of a list may hold, for a key that may be such a list, or None."""
    lists = [option for option in (hint, *get_args(hint)) if get_origin(option) is list]
    return next((found for option in lists if (found := section_of(get_args(option)[0])) is not None), None)


def coerce(value: Any, hint: Any, key: str) -> Any:
    """Convert `value` to the type `hint`: an int to a float, a tuple to a list, a mapping to a section, and what was
    typed to text where the key takes text.

    Raises:
        RecipeError: if it does not fit; the line names key, value and the expected type.
    """
    origin, options = get_origin(hint), get_args(hint)
    section = section_of(hint)
    if isinstance(value, Typed):
        value = _as_meant(value, options if origin in (Union, types.UnionType) else (hint,))
    if section is not None and section is hint:
        return _as_section(value, section, key)
    if origin in (Union, types.UnionType):
        if any(_is_enum(option) for option in options):  # `SchedulerType | str` of transformers takes no other text
            options = tuple(option for option in options if option is not str)
            hint = Union[options]  # noqa: UP007  # built at run time
        if section is not None and isinstance(value, Mapping):
            return _as_section(value, section, key)
        for option in sorted(options, key=lambda o: o is float):  # an int stays an int where both fit
            if _fits(value, option):
                return coerce(value, option, key)
    elif origin is Literal:
        for option in options:
            if option == value and isinstance(value, type(option)):
                return option
        raise RecipeError(f"{key} is {cut(value)}: allowed is {_join(options)}{did_you_mean(value, options)}")
    elif origin is list and isinstance(value, list | tuple):
        return [coerce(item, options[0], f"{key}[{i}]") for i, item in enumerate(value)]
    elif _fits(value, hint):
        value = untyped(value)
        require_plain(value, key)
        return float(value) if hint is float else value
    expected = shortened(describe(hint), 200)
    raise RecipeError(f"{key} is {cut(untyped(value))} ({type(value).__name__}): expected {expected}")


def _as_meant(typed: Typed, options: tuple[Any, ...]) -> Any:
    """The text or the value, whichever one of these types takes; if several do, a word that is listed comes first."""
    if any(typed.text in _words(option) for option in options):
        return typed.text
    if any(_fits(typed.value, option) for option in options):
        return typed.value
    return typed.text if str in options or typed.is_word else typed.value


def describe(hint: Any) -> str:
    """A type in words, such as `a number or null`."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in options)
    if origin is Literal:
        return _join(options)
    if origin is list:
        item = section_of(options[0])
        plurals = {float: "numbers", int: "whole numbers"}
        of = f"sections ({item.place})" if item is not None else plurals.get(options[0]) or describe(options[0])
        return f"a list of {of}"
    if _is_enum(hint):
        return _join(_words(hint))
    if section_of(hint) is hint:
        return "a section of keys"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
    return (words | {dict: "keys"}).get(origin or hint, str(hint))


def _as_section(value: Any, section: type[Section], key: str) -> Section:
    if isinstance(value, section):
        stands_elsewhere = getattr(value, "where", key) != key
        return replace(value, where=key) if stands_elsewhere else value  # type: ignore[call-arg]
    if not isinstance(value, Mapping):
        raise RecipeError(f"{key} is {cut(untyped(value))}: expected a section of keys")
    return section.build(value, key)


def _is_section(hint: Any) -> bool:
    """True if a key holds a section and does not allow null."""
    return section_of(hint) is not None and type(None) not in get_args(hint)


def _adds_nothing(key: Field[Any], section: Section) -> bool:
    """True if a later key has its default, so that the section equals one from before the key existed."""
    if not key.metadata.get("later"):
        return False
    default = key.default if key.default_factory is MISSING else key.default_factory()
    return bool(getattr(section, key.name) == default)


def _without_sections(value: Any, as_plain: bool) -> Any:
    if isinstance(value, list):
        return [_without_sections(item, as_plain) for item in value]
    if isinstance(value, Section):
        return value.plain() if as_plain else value.mapping()
    return copy.deepcopy(value)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _words(hint: Any) -> list[Any]:
    """The values that an enumeration or a `Literal` allows."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [member.value for member in hint] if _is_enum(hint) else []


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal or _is_enum(hint):
        return value in _words(hint)
    if origin is list:
        return isinstance(value, list | tuple)
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _join(options: Iterable[Any]) -> str:
    return " | ".join(str(option) for option in options)
