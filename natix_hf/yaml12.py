"""Read YAML 1.2 with PyYAML, and keep what was typed."""

from __future__ import annotations

import re
from typing import Any

import yaml

from natix_hf.errors import cut, first_line, shortened
from natix_hf.typed import Typed

# PyYAML raises a ValueError for `!!int abc`, a TypeError for a list as a key, or a RecursionError.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)
LONGEST = 1_000_000  # characters
_MOST_VALUES = 100_000  # with every alias written out: nine lines of aliases can stand for a billion values
_DEEPEST = 50  # levels of brackets: PyYAML takes ever longer the deeper they are


def yaml_problem(error: BaseException) -> str:
    """What is wrong and where, without the line itself, which may hold anything."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    return shortened(getattr(error, "problem", None) or first_line(error), 160) + where


def read_yaml(text: str) -> Any:
    """Read one YAML document. Numbers, and the words for true and false, are `Typed`; the keys of mappings are text.

    Raises:
        NOT_YAML: if it is no YAML, if a key is given twice, or if it is far too large for a recipe.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has {len(text):,} characters, and {LONGEST:,} is the most")
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads plain scalars as YAML 1.2 does, keeps what was typed, and refuses a key given twice.

    YAML 1.1, which PyYAML follows, reads `1e-4` as text, `01` as an octal number, `1:30` as 90, `2024-01-01` as a date
    and the key `no` as false. Here numbers and the words for true and false become `Typed`, and keys are text.
    """

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")
        super().fetch_flow_collection_start(TokenClass)

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _written_out(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"with its aliases it stands for more than {_MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                problem = f"the key {cut(key_node.value)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        self.flatten_mapping(node)
        node.value = [(_text_node(key_node), value_node) for key_node, value_node in node.value]
        return super().construct_mapping(node, deep)

    def construct_typed(self, node: yaml.ScalarNode) -> Typed:
        text = str(self.construct_scalar(node))
        kind = node.tag.rpartition(":")[2]
        value = {"bool": _truth, "int": _whole, "float": _number}[kind](text)
        return Typed(text, value)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values of a node with every alias written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # stands for itself inside itself
        pairs = isinstance(node, yaml.MappingNode)
        below = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in below)
    return known[id(node)]


def _text_node(node: yaml.Node) -> yaml.Node:
    if not isinstance(node, yaml.ScalarNode):
        return node
    return yaml.ScalarNode("tag:yaml.org,2002:str", node.value, node.start_mark, node.end_mark)


def _truth(text: str) -> bool:
    return text.lower() in ("true", "yes", "on")


def _whole(text: str) -> int:
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.yaml_implicit_resolvers = {}
_DIGITS = "[0-9]+(?:_[0-9]+)*"
# The first that matches counts. `<<` merges mappings. The words of YAML 1.1 for true and false stay known, for keys
# that take true or false.
for _kind, _pattern, _starts in (
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", "~nN"),
    ("bool", "|".join(f"{w}|{w.title()}|{w.upper()}" for w in "true false yes no on off".split()), "tTfFyYnNoO"),
    ("int", f"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        rf"[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _first = [*_starts, ""] if _kind == "null" else list(_starts)
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_typed)
