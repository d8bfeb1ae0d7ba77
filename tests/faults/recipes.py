"""Mutated recipes against the parser: each is accepted, or refused in one short line before any work.

    python tests/faults/recipes.py [--count 10000] [--seed 0]

Recipes are changed as values (absurd numbers, wrong types, long and strange texts, deep nesting, aliases, unknown
keys, tokens) and as bytes. Each is read as `natix-hf run` reads it, and checked as far as it is without a model. No
number that is known to be absurd may be accepted. A seed has no size that is absurd.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from natix_hf.errors import UsageError
from natix_hf.preflight import check_run
from natix_hf.recipe import load_recipe, packaged_recipes
from natix_hf.section import describe, item_section_of, key_types, section_of

MOST_SECONDS, LONGEST = 5, 400
TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0iL3o"
# Nobody wants these of any numeric key. `adapter_options` and `config` of a model are not ours to know.
ABSURD = (1e9 + 0.5, 1e40, -1e40, 1e300, 1e12, 10**18, 10**400, -(10**30), float("inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "a" * 10_357,
    "/etc/passwd",
    "../../etc/passwd",
    "~/.ssh/id_rsa",
    "C:\\Windows",
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "\u202eabc",
    "\0",
    "\ud800",
    "null",
    "no",
    "1e9",
    "${HOME}",
    "$(id)",
    "{{ 7 * 7 }}",
    "%s%n",
    "é" * 300,
    TOKEN,
    f"https://user:{TOKEN}@host/data",
    f"https://host/data?token={TOKEN}",
    "http://[::1",
    "a/b/c/d",
    "(" * 3000,
)
OTHERS = (None, True, [], {}, [[]], [None] * 50, {"a": {"b": {}}}, {"": ""}, [1, "a", None], 0, -1, 0.0, -0.5, 1e-320)
BOMBS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "data: &a [*a]",
    "data: &a {<<: *a}",
    "[" * 100_000,
    "{a: " * 5000,
    "- " * 50_000,
    "!!python/object/apply:os.system [id]",
    "data: !!python/name:os.system",
    "data: !!binary aGVsbG8=",
    "data: !!set {a, b}",
    "data: !!timestamp 2001-01-01",
    "phase1: {learning_rate: !!float abc}",
    "phase1: {learning_rate: !!int " + "9" * 5000 + "}",
    "%YAML 9.9\n---\ndata: {}",
    "data: {}\n---\ndata: {}",
    "? [a]\n: b",
    "data: {source: synthetic, source: synthetic}",
    "\ufeffdata: {}",
    "data: |\n" + "x" * 10**6,
    "a: " + "1_" * 10_000 + "1",
    "a: 0x" + "f" * 100_000,
    "\t- a",
    "data: *nobody",
    "&a" * 3000,
    "'" * 3001,
    "x" * 2_000_000,
)


def _keys(section: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, hint in key_types(section).items():
        yield (*path, name), hint
        inner = section_of(hint) or item_section_of(hint)
        if inner is not None and len(path) < 3:
            yield from _keys(inner, (*path, name))


def _keys_of_all() -> list[tuple[tuple[str, ...], Any]]:
    from natix_hf.recipe import Recipe

    further = (
        "gradient_accumulation_steps",
        "adam_epsilon",
        "max_grad_norm",
        "num_train_epochs",
        "max_steps",
        "save_steps",
        "dataloader_prefetch_factor",
        "eval_delay",
        "ddp_timeout",
        "torch_empty_cache_steps",
        "dataloader_num_workers",
        "label_smoothing_factor",
        "neftune_noise_alpha",
    )
    own = list(_keys(Recipe))
    return own + [((phase, key), float) for phase in ("phase1", "phase3", "phase4") for key in further]


def _value(dice: random.Random) -> tuple[Any, bool]:
    """A strange value, and whether it is absurd as a number."""
    kind = dice.randrange(4)
    if kind == 0:
        return dice.choice(ABSURD), True
    if kind == 1:
        return dice.choice(TEXTS), False
    if kind == 2:
        return dice.choice(OTHERS), False
    nested: Any = dice.choice(OTHERS)
    for _ in range(dice.choice((1, 3, 30, 90))):
        nested = [nested] if dice.random() < 0.5 else {dice.choice(("a", "source", "x" * 500)): nested}
    return nested, False


def _set(content: Any, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(content.get(key), dict):
            content[key] = {}
        content = content[key]
    content[path[-1]] = value


def mutations(seed: int) -> Iterator[tuple[str, bytes, list[str], str | None]]:
    """Recipes without an end: kind, file, overrides, and the key whose number is absurd."""
    dice = random.Random(seed)
    texts = [path.read_text(encoding="utf-8") for path in packaged_recipes()]
    keys = _keys_of_all()
    for bomb in BOMBS:
        yield "YAML", bomb.encode("utf-8", "surrogatepass"), [], None
        yield "YAML override", b"{}", [f"data.source={bomb}"], None
    numeric = [path for path, hint in keys if "number" in describe(hint) and "text" not in describe(hint)]
    for path, number in ((path, number) for path in numeric for number in (1e40, 10**18)):
        content: dict[str, Any] = {}
        _set(content, path, number)
        yield "numbers", yaml.safe_dump(content).encode(), [], ".".join(path) if path[-1] != "seed" else None
    while True:
        content = yaml.safe_load(dice.choice(texts)) or {}
        absurd = None
        for _ in range(dice.choice((1, 1, 2, 5))):
            path, _ = dice.choice(keys)
            if dice.random() < 0.1:
                path = (*path[:-1], dice.choice(("", "x" * 9000, path[-1] + "x", "\x1b[2J", TOKEN, "a.b.c")))
            value, is_absurd = _value(dice)
            absurd = ".".join(path) if is_absurd and path[-1] != "seed" else absurd
            with contextlib.suppress(TypeError, AttributeError):
                _set(content, path, value)
        with contextlib.suppress(yaml.YAMLError, RecursionError, UnicodeError):
            yield "values", yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"), [], None
        path, _ = dice.choice(keys)
        yield "overrides", b"{}", [f"{'.'.join(path)}={_value(dice)[0]}"], None
        raw = bytearray(dice.choice(texts).encode())
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(raw) + 1)
            piece = dice.choice(
                (
                    b"",
                    b"\0",
                    b"\xff",
                    b"\t",
                    b": ",
                    b"- ",
                    b"&a ",
                    b"*a ",
                    b"!!",
                    b"{",
                    b"[",
                    b"\n\n",
                    b"|",
                    b"%",
                    b"'",
                )
            )
            raw[at : at + dice.choice((0, 1, 3, 40))] = piece * dice.choice((1, 1, 2, 300))
        yield "bytes", bytes(raw), [], None


class _Late(BaseException):
    pass


def _late(*_: Any) -> None:
    raise _Late


def outcome(file: Path, overrides: list[str]) -> tuple[str, str]:
    """`accepted`, `refused` or a fault, and the line."""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(60)
    try:
        recipe = load_recipe(str(file), overrides)
        alone = not recipe.phase6.push and not recipe.phase6.onnx
        check_run(recipe, [4, 6] if alone else [4], None, trains_here=False)
    except UsageError as error:
        told = str(error)
        if not told.isprintable() or len(told) > LONGEST or TOKEN in told or "Traceback" in told:
            return f"a line of {len(told)} characters: {told[:300]!a}", told
        return "refused", told
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!a}", ""
    finally:
        signal.alarm(0)
    return "accepted", ""


def attack(count: int, seed: int, kinds: str | None = None) -> int:
    """Try so many recipes, print what became of each kind, and return the number of faults."""
    import transformers.training_args  # noqa: F401  # takes seconds, once

    counts: dict[str, Counter[str]] = {}
    slowest, shown = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        for (kind, content, overrides, absurd), _ in zip(mutations(seed), range(count), strict=False):
            file.write_bytes(content)
            begin = time.process_time()
            told, _line = outcome(file, overrides)
            seconds = time.process_time() - begin
            slowest = max(slowest, seconds)
            if told == "accepted" and absurd is not None:
                told = f"the absurd {absurd} is accepted"
            if seconds > MOST_SECONDS:
                told = f"{seconds:.1f} s"
            of_kind = counts.setdefault(kind, Counter())
            of_kind[told if told in ("accepted", "refused") else "fault"] += 1
            if told not in ("accepted", "refused") and (shown := shown + 1) < 40:
                print(f"FAULT: {kind}: {told}: {content[:120]!a} {ascii(overrides)[:120]}", flush=True)
    for kind, found in counts.items():
        print(
            f"{kind}: {found.total()} tried, {found['refused']} refused, {found['accepted']} accepted, "
            f"{found['fault']} faults"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"slowest {slowest:.2f} s, peak memory {peak:,.0f} MB")
    return sum(found["fault"] for found in counts.values()) + (peak > 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    raise SystemExit(1 if attack(options.count, options.seed) else 0)


if __name__ == "__main__":
    main()
