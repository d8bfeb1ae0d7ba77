"""Files of a finished run that somebody has changed, read by everything that reads a run.

    python tests/faults/run_files.py [--count N] [--seed S]

`run.json`, the manifests, the results, the stored answers and the owner's mark are mutated N times in all, value by
value and byte by byte. `natix-hf verify`, `runs` and `clean` read each mutation as it is, and again with every
checksum of the run made anew. A miss is any other exception than one line, more than 5 s, a file that was written or
removed, or a mutation that `verify` does not see although no checksum was made anew.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bundles import bind, describe, redescribe
from damages import make_run
from mutations import SECONDS, Slow, Tally, mutate_bytes, mutate_header, mutate_json, rss_mb, watched

from natix_hf.bundle.names import BUNDLE_MANIFEST, POLICY
from natix_hf.errors import NatixError
from natix_hf.provenance.files import list_files
from natix_hf.provenance.manifest import MANIFEST
from natix_hf.provenance.owner import OWNER
from natix_hf.runs.graph import PHASES
from natix_hf.runs.housekeeping import spare, state_of_run
from natix_hf.runs.verify import run_problems

BUNDLE = f"{PHASES[6].folder}/bundle"
READERS = {"verify": run_problems, "runs": state_of_run, "clean": spare}


def mutated(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".safetensors"):
        return mutate_header(rng, content)
    if name.endswith(".json") and rng.random() < 0.7:
        parsed = json.loads(content)
        if isinstance(parsed, dict):
            return mutate_json(rng, parsed)
    return mutate_bytes(rng, content)


def tried(tally: Tally, kind: str, run: Path, told: str, must_be_seen: bool) -> None:
    """Let every reader read a run, and count what came of it."""
    outcome, begun = "same", time.perf_counter()
    with watched(run.parent) as outside:
        for reader, read in READERS.items():
            try:
                found: Any = read(run)
                if reader == "verify":
                    lines = [line for line in found if "\n" in line or not line.isprintable() or len(line) > 2000]
                    outcome = "refused" if found else "missed" if must_be_seen else "same"
                    told = f"verify sees nothing; {told}" if outcome == "missed" else told
                    if lines:
                        outcome, told = "missed", f"no line: {lines[0][:300]!a}; {told}"
            except NatixError as error:
                outcome = "refused" if outcome != "missed" else outcome
                if "\n" in str(error) or not str(error).isprintable():
                    outcome, told = "missed", f"{reader}: not one line: {str(error)[:300]!a}; {told}"
            except Slow:
                outcome, told = "missed", f"{reader} took more than {2 * SECONDS} s; {told}"
            except Exception as error:  # what is looked for
                outcome, told = "missed", f"{reader}: {type(error).__name__}: {str(error)[:200]}; {told}"
    took = time.perf_counter() - begun
    tally.slowest = max(tally.slowest, took)
    if took > SECONDS and outcome != "missed":
        outcome, told = "missed", f"took {took:.1f} s; {told}"
    if outside:
        outcome, told = "missed", f"{outside[0]}; {told}"
    tally.count(kind, outcome, told)


def fuzz(tally: Tally, run: Path, count: int, seed: int) -> None:
    """Mutate files of a run `count` times, and read each mutation in two ways."""
    rng = random.Random(seed)
    sealed = [run / phase.folder / MANIFEST for phase in PHASES.values()]
    sealed += [run / BUNDLE / BUNDLE_MANIFEST, run / BUNDLE / POLICY]
    recorded = {path: path.read_bytes() for path in sealed if path.is_file()}
    names = [name for name in list_files(run) if Path(name).suffix in (".json", ".parquet", ".safetensors")]
    for number in range(count):
        name = rng.choice(names)
        whole = (run / name).read_bytes()
        made = mutated(rng, name, whole)
        if made == whole:
            continue
        folder, told = name.split("/")[0], f"{name}, mutation {number} of seed {seed}"
        kind = "a manifest" if name.endswith(f"/{MANIFEST}") else "a mark" if folder == OWNER else "a result"
        (run / name).write_bytes(made)
        tried(tally, f"{kind}, as it is", run, told, must_be_seen=kind != "a mark")
        try:
            if name.startswith(f"{BUNDLE}/"):
                bind(run / BUNDLE)
                describe(run / BUNDLE)
            redescribe(run)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError, NatixError):
            tally.count(f"{kind}, all made anew", "refused")  # it cannot be made to fit
        else:
            tried(tally, f"{kind}, all made anew", run, told, must_be_seen=False)
        for path, content in recorded.items():
            path.write_bytes(content)
        (run / name).write_bytes(whole)


def attack(count: int, seed: int, folder: Path, run: Path | None = None) -> tuple[Tally, float]:
    """Mutate a copy of `run`, or of one that is made here. Returns the tally, and by how many MB the memory grew."""
    if run is None:
        make_run(folder)
        run = folder / "run"
    copied = Path(shutil.copytree(run, folder / "mutated" / "run"))
    tally, before = Tally(), rss_mb()
    if run_problems(copied):
        raise SystemExit("the run is not intact before anything was changed")
    fuzz(tally, copied, count, seed)
    return tally, rss_mb() - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tally, grown = attack(given.count, given.seed, Path(scratch).resolve())
    return tally.report(grown)


if __name__ == "__main__":
    sys.exit(main())
