"""Generate `docs/api.md` from the code: signature and docstring of every public name. `make docs` runs it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import natix_hf

_MODULES = ("metrics", "calibration", "subnet", "ssl")
_INTRO = """# The API

This page is generated from the code by `python -m natix_hf.apidoc`. Every name is reachable at the top level, as in
`natix_hf.load_bundle`, or in one of the modules `natix_hf.metrics`, `natix_hf.calibration`, `natix_hf.subnet` and
`natix_hf.ssl`. Importing `natix_hf` imports neither torch nor transformers.
"""


def api_page() -> str:
    """The text of `docs/api.md`."""
    parts = [_INTRO, "## natix_hf\n"]
    parts += [_entry(name, getattr(natix_hf, name)) for name in _names(natix_hf)]
    for module in _MODULES:
        found = importlib.import_module(f"natix_hf.{module}")
        parts.append(f"## natix_hf.{module}\n\n{_text(found)}\n")
        parts += [_entry(f"{module}.{name}", getattr(found, name)) for name in _names(found)]
    return "\n".join(parts).rstrip() + "\n"


def _names(module: Any) -> Iterator[str]:
    for name in module.__all__:
        if name not in (*_MODULES, "__version__"):
            yield name


def _entry(name: str, value: Any) -> str:
    if inspect.isclass(value):
        methods = [_method(key, member) for key, member in vars(value).items() if _is_public(key, member)]
        return "\n".join([f"### {name}\n", _signature(name, value), f"{_text(value)}\n", *methods])
    if inspect.isfunction(value):
        return "\n".join([f"### {name}\n", _signature(name, value), f"{_text(value)}\n"])
    return f"### {name}\n\n`{value!r}`\n"


def _is_public(key: str, member: Any) -> bool:
    kinds = (property, classmethod, staticmethod)
    documented = bool(getattr(member, "__doc__", None))
    return not key.startswith("_") and documented and (inspect.isfunction(member) or isinstance(member, kinds))


def _method(key: str, member: Any) -> str:
    if isinstance(member, property):
        return f"**{key}**: {_text(member)}\n"
    function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    return f"{_signature(key, function)}\n{_text(function)}\n"


def _signature(name: str, value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # a class without a readable signature
        return ""
    parameters = [p for key, p in signature.parameters.items() if key not in ("self", "cls")]
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return f"```python\n{name}{inspect.Signature(plain)}\n```\n"


def _text(value: Any) -> str:
    """A docstring as Markdown: sections become bold headings, and their entries become lists."""
    text = inspect.getdoc(value) or ""
    headings = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises", "Example:", "References:")
    lines: list[str] = []
    example = False
    for line in text.splitlines():
        if line.startswith(headings):
            example = line.startswith("Example")
            lines += ["", f"**{line.rstrip(':')}**" if line.endswith(":") else line, ""]
        elif example:
            lines.append(line.removeprefix("    "))
        elif line.startswith("    ") and line[4] != " " and ":" in line and not line.strip().startswith(">>>"):
            lines.append(f"- {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines).strip()


if __name__ == "__main__":
    sys.stdout.write(api_page())
