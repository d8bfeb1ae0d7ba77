"""Recipes: one YAML file, checked against dataclasses. dataclass < YAML < `KEY=VALUE` of the command line."""

from __future__ import annotations

import difflib
import enum
import math
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from natix_hf.data.config import DataConfig
from natix_hf.errors import RecipeError
from natix_hf.models.config import ModelConfig
from natix_hf.phases.config import Phase2Config, Phase5Config, Phase6Config
from natix_hf.provenance.files import folder_fingerprint, json_sha256
from natix_hf.resources import resource_folder
from natix_hf.trainers.config import TRAINING_DEFAULTS, TRAINING_REFUSED, SupervisedConfig
from natix_hf.trainers.explora_config import EXPLORA_DEFAULTS, ExploraConfig
from natix_hf.trainers.gate_config import GATE_DEFAULTS, GateConfig


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; its fields are the only top-level keys of the YAML file."""

    phases: list[int] = field(default_factory=lambda: [1, 2, 6])
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(config={"model_type": "vit"}))
    phase1: SupervisedConfig = field(default_factory=SupervisedConfig)
    phase2: Phase2Config = field(default_factory=Phase2Config)
    phase3: GateConfig = field(default_factory=GateConfig)
    phase4: ExploraConfig = field(default_factory=ExploraConfig)
    phase5: Phase5Config = field(default_factory=Phase5Config)
    phase6: Phase6Config = field(default_factory=Phase6Config)
    name: str = field(default="recipe", metadata={"not_a_key": True})

    def section(self, name: str) -> Any:
        """A section, or one key of it as in `data.slices`, with every default filled in, as plain JSON values."""
        section, _, key = name.partition(".")
        values = asdict(getattr(self, section))
        return values[key] if key else values

    def training_of(self, number: int) -> dict[str, Any]:
        """The TrainingArguments fields of a phase that trains."""
        training: dict[str, Any] = getattr(self, f"phase{number}").training
        return training

    def section_sha256(self, *names: str) -> str:
        """Hash of sections: a local folder counts with what it holds, not with where it lies."""
        return json_sha256({name: _identity(name, self.section(name)) for name in names})


# The sections that take TrainingArguments fields beside their own keys: class and defaults. The outer one comes after
# the one inside it.
_TRAINING_SECTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "phase1": (SupervisedConfig, TRAINING_DEFAULTS),
    "phase3": (GateConfig, GATE_DEFAULTS),
    "phase4.supervised": (SupervisedConfig, TRAINING_DEFAULTS),
    "phase4": (ExploraConfig, EXPLORA_DEFAULTS),
}
_PATH_KEYS = ("source", "backbone", "unlabelled")


# Keys that a later phase names by itself, so that a change of one does not make everything before it stale.
_NAMED_APART = {"data": ("slices", "exam", "exam_views")}


def _identity(name: str, section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    resolved = {key: value for key, value in section.items() if key not in _NAMED_APART.get(name, ())}
    for key in _PATH_KEYS:
        value = resolved.get(key)
        if isinstance(value, list):
            resolved[key] = [_content(item) for item in value]
        elif isinstance(value, str):
            resolved[key] = _content(value)
    return resolved


def _content(reference: str) -> Any:
    """What a local folder holds; any other reference as it is."""
    return {"folder": folder_fingerprint(Path(reference))} if Path(reference).is_dir() else reference


def load_recipe(reference: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by the name of a packaged one or by path, applies `KEY=VALUE` overrides and checks everything.

    Raises:
        RecipeError: one line with file, key, value and what is expected.
    """
    path = find_recipe(reference)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    except _NOT_YAML as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} holds a {type(content).__name__}, a recipe is a mapping of sections (data:, model:, …)"
        )
    for override in overrides:
        _apply_override(content, override)
    return parse_recipe(content, name=path.stem)


def parse_recipe(content: dict[str, Any], name: str = "recipe") -> Recipe:
    """Checks a mapping of sections and fills in the defaults."""
    recipe: Recipe = _build(Recipe, _collect_training_fields(content), where="")
    return replace(recipe, name=name)


def find_recipe(reference: str) -> Path:
    """The file of a packaged recipe's name, or of a path."""
    if reference.endswith((".yaml", ".yml")) or "/" in reference or "\\" in reference:
        if Path(reference).is_file():
            return Path(reference)
        raise RecipeError(f"no recipe file {reference}: `natix-hf recipes` lists those that come with the package")
    path = resource_folder("recipes") / f"{reference}.yaml"
    if path.is_file():
        return path
    known = [file.stem for file in packaged_recipes()]
    raise RecipeError(
        f"no recipe {reference!r}{_nearest(reference, known)}: `natix-hf recipes` lists them, or name a YAML file"
    )


def packaged_recipes() -> list[Path]:
    return sorted(resource_folder("recipes").glob("*.yaml"))


# PyYAML lets a ValueError out for a date such as 2026-13-45, a TypeError for a list as a key, and a RecursionError.
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    """SafeLoader in which `1e-4` is a number, as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$|^[-+]?\.\d+([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is not KEY=VALUE, as in phase1.learning_rate=1e-4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except _NOT_YAML:
        raise RecipeError(f"the value of {override!r} is not valid YAML") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        inner = section.setdefault(parent, {})
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{override!r}: {parent} is a value, not a section")
        section = inner
    section[last] = value


def _collect_training_fields(content: dict[str, Any]) -> dict[str, Any]:
    """Moves the TrainingArguments fields of a section into its `training` mapping, checked, over the defaults."""
    collected = dict(content)
    for name, (cls, defaults) in _TRAINING_SECTIONS.items():
        outer, _, inner = name.partition(".")
        holder = collected
        if inner:  # a section within a section stays null where it is not given
            if not isinstance(collected.get(outer), dict) or collected[outer].get(inner) is None:
                continue
            holder = collected[outer] = dict(collected[outer])
        holder[inner or outer] = _with_training(holder.get(inner or outer), name, cls, defaults)
    return collected


def _with_training(given: Any, section: str, cls: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise RecipeError(f"{section} is {given!r}: expected a section of keys")
    own = {f.name for f in fields(cls) if not f.metadata.get("not_a_key")} - {"training"}
    training = {key: value for key, value in given.items() if key not in own}
    filled = {key: _coerce(value, _QUICK_TYPES[key], key) for key, value in defaults.items()}
    return {key: value for key, value in given.items() if key in own} | {
        "training": filled | _check_training(training, section, own)
    }


def _check_training(given: dict[str, Any], section: str, own: set[str]) -> dict[str, Any]:
    for key in given:
        if key in TRAINING_REFUSED or str(key).startswith("hub_"):
            raise RecipeError(
                f"{section}.{key} is refused: {TRAINING_REFUSED.get(key, TRAINING_REFUSED['push_to_hub'])}"
            )
    hints = _QUICK_TYPES
    if not all(key in hints and key not in _ENUMS and _fits(value, hints[key]) for key, value in given.items()):
        from transformers import TrainingArguments

        hints = get_type_hints(TrainingArguments)
    for key in given:
        if key not in hints:
            raise RecipeError(f"unknown key {section}.{key}{_nearest(str(key), [*own, *hints])}")
    return {key: _coerce(value, hints[key], f"{section}.{key}") for key, value in given.items()}


# Types of the keys that have defaults here, as TrainingArguments has them (a test compares): most recipes are checked
# without the seconds that importing transformers takes.
_DEFAULTS = TRAINING_DEFAULTS | EXPLORA_DEFAULTS | GATE_DEFAULTS
_QUICK_TYPES: dict[str, Any] = {key: type(value) for key, value in _DEFAULTS.items()} | {
    "num_train_epochs": float,
    "logging_steps": float,
    "report_to": str | list[str] | None,
    "save_total_limit": int | None,
}
_ENUMS = ("lr_scheduler_type", "eval_strategy", "save_strategy")


def _build(cls: Any, content: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    allowed = [f.name for f in fields(cls) if not f.metadata.get("not_a_key")]
    values = {}
    for key, value in content.items():
        full = f"{where}{key}"
        if key not in allowed:
            raise RecipeError(f"unknown key {full}{_nearest(str(key), allowed)}")
        if not (value is None and _is_section(hints[key])):  # `phase2:` with nothing under it means its defaults
            values[key] = _coerce(value, hints[key], full)
    if "where" in hints:  # a section that stands in several places names the one in its errors
        values["where"] = where.rstrip(".")
    return cls(**values)


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """Returns `value` as `hint` wants it (an int serves as a float), or raises with key, value and expected type."""
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"{key} is {value!r}: expected a section of keys")
        return _build(hint, value, where=f"{key}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if value is False and any("no" in [member.value for member in e] for e in (hint, *arguments) if _is_enum(e)):
        value = "no"  # YAML 1.1 reads a bare `no` as false
    if origin in (Union, types.UnionType):
        if any(_is_enum(option) for option in arguments):  # transformers' `SchedulerType | str` takes no other text
            arguments = tuple(option for option in arguments if option is not str)
            hint = Union[arguments]  # noqa: UP007  # built at run time
        section = next((option for option in arguments if is_dataclass(option)), None)
        if section is not None and isinstance(value, dict):
            return _coerce(value, section, key)
        for option in sorted(arguments, key=lambda o: o is float):  # an int stays an int where both fit
            if _fits(value, option):
                return _coerce(value, option, key)
    elif origin is Literal:
        if value in arguments:
            return value
        raise RecipeError(f"{key} is {value!r}{_nearest(str(value), arguments)}: allowed is {_join(arguments)}")
    elif origin is list and isinstance(value, list):
        return [_coerce(item, arguments[0], f"{key}[{i}]") for i, item in enumerate(value)]
    elif _fits(value, hint):
        _require_plain(value, key)
        return float(value) if hint is float else value
    raise RecipeError(f"{key} is {value!r} ({type(value).__name__}): expected {_describe(hint)}")


def _is_section(hint: Any) -> bool:
    """Whether a key holds a section, and null is no value of its own."""
    arguments = get_args(hint)
    return is_dataclass(hint) or (any(is_dataclass(option) for option in arguments) and type(None) not in arguments)


def _require_plain(value: Any, key: str) -> None:
    """Refuses what a manifest could not hold as JSON: infinity, NaN, dates and the like, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            _require_plain(item, f"{key}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _require_plain(item, f"{key}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{key} is {value!r}: expected a finite number")
    elif not isinstance(value, str | int | float | None):
        raise RecipeError(f"{key} is {value!r} ({type(value).__name__}): expected text, a number, true, false or null")


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return value in get_args(hint)
    if origin is not None:
        return isinstance(value, origin)
    if _is_enum(hint):
        return value in [member.value for member in hint]
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return _join(arguments)
    if origin is list:
        return f"a list of {_describe(arguments[0])}"
    if _is_enum(hint):
        return _join([member.value for member in hint])
    names = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        dict: "keys",
    }
    if is_dataclass(hint):
        return "a section of keys"
    return names.get(origin or hint, str(hint))


def _join(options: Iterable[Any]) -> str:
    return " | ".join(str(option) for option in options)


def _nearest(word: str, known: Iterable[Any]) -> str:
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""
