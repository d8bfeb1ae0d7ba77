"""Damage between phases: one file of an earlier phase is changed, then a later phase runs alone, then all of them.

    python tests/faults/damages.py [--count N] [--seed S]

The later phase must refuse, or leave exactly what it leaves without the damage, because it does not read the file. The
whole run afterwards must end with the bundle of an untouched run, or refuse; and `verify` must not call a run intact
that differs from an untouched one.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import explora_recipe, tiny_backbone, write_parquet_source

from natix_hf.errors import NatixError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import list_files, read_json
from natix_hf.provenance.manifest import MANIFEST
from natix_hf.runs.graph import PHASES
from natix_hf.runs.verify import find_problems

# A key of each later phase, and a value that makes it run again.
LATER = {
    4: "phase4.supervised={learning_rate: 1e-3, num_train_epochs: 1, per_device_train_batch_size: 16, "
    "dataloader_num_workers: 0}",
    2: "phase2.n_resamples=300",
    3: "phase3.n_resamples=300",
    5: "phase5.n_resamples=300",
    6: "phase6.n_resamples=300",
}
ALL = [1, 4, 2, 3, 5, 6]


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, rng: random.Random) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (_flip, _flip, _truncate, _empty, _remove)


def make_run(folder: Path) -> tuple[str, list[str]]:
    """A finished run of every phase in `folder/run`, whose model is often wrong; its recipe and overrides."""
    source = write_parquet_source(folder / "source", groups=60, official_test=30, unclear=3)
    tiny_backbone("dinov2", layers=2).save_pretrained(folder / "backbone")
    recipe = explora_recipe(folder, source, folder / "backbone", objective="mae")
    overrides = ["phase1.adapter=lora", "phase5.risk.alpha=0.6", "phase5.risk.delta=0.3", "data.target_prior=0.5"]
    run_recipe(recipe, ALL, folder / "run", overrides=overrides)
    return recipe, overrides


def _digests(run: Path, *numbers: int) -> dict[int, str | None]:
    found = {}
    for number in numbers or PHASES:
        path = run / PHASES[number].folder / MANIFEST
        found[number] = str(read_json(path)["digest"]) if path.is_file() else None
    return found


def _run(recipe: str, phases: list[int], run: Path, overrides: list[str]) -> str | None:
    """Run phases; the error's line if they were refused."""
    try:
        run_recipe(recipe, phases, run, overrides=overrides)
    except NatixError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def try_damages(count: int, seed: int, folder: Path) -> Counter[str]:
    """Damage `count` files, each in a copy of a finished run.

    Returns:
        How often each thing happened. Everything that must not happen begins with "missed".
    """
    recipe, overrides = make_run(folder)
    clean: dict[int, dict[int, str | None]] = {}
    rng, counts = random.Random(seed), Counter[str]()
    phases = {phase.folder: phase for phase in PHASES.values()}
    files = [name for name in list_files(folder / "run") if name.split("/")[0] in phases and ".jpg" not in name]
    for trial in range(count):
        name = rng.choice(files)
        above = phases[name.split("/")[0]]
        order = [0, *ALL]
        later = [number for number in LATER if order.index(number) > order.index(above.number)]
        if not later:
            continue
        number, damage = rng.choice(later), rng.choice(DAMAGES)
        changed = [*overrides, LATER[number]]
        if number not in clean:
            run = Path(shutil.copytree(folder / "run", folder / f"clean-{number}"))
            assert _run(recipe, [number], run, changed) is None
            assert _run(recipe, ALL, run, changed) is None
            clean[number] = _digests(run)
        run = Path(shutil.copytree(folder / "run", folder / f"trial-{trial}"))
        damage(run / name, rng)
        what = f"{damage.__name__.strip('_')} {name}, then phase {number}"
        refusal = _run(recipe, [number], run, changed)
        if refusal is not None:
            counts["refused by the phase alone"] += 1
        elif _digests(run, number)[number] == clean[number][number]:
            counts["not read by the phase"] += 1
        else:
            counts[f"missed: {what} used it"] += 1
        refusal = _run(recipe, ALL, run, changed)
        problems = find_problems(str(run))
        if refusal is None and problems:
            counts[f"missed: {what}, a whole run leaves {problems[0]}"] += 1
        elif refusal is None and _digests(run) != clean[number]:
            counts[f"missed: {what}, a whole run ends otherwise"] += 1
        elif refusal is not None and not problems:
            counts[f"missed: {what}, refused ({refusal}) but verify says intact"] += 1
        else:
            counts["mended by the whole run" if refusal is None else "refused by the whole run"] += 1
        shutil.rmtree(run)
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        counts: Any = try_damages(given.count, given.seed, Path(folder))
    for what, times in sorted(counts.items()):
        print(f"{times:6d}  {what}")
    return int(any(what.startswith("missed") for what in counts))


if __name__ == "__main__":
    raise SystemExit(main())
