"""Disks that are full, read-only or damaged, at every phase: one line that says so, and a run that continues equal.

Each trial is a process with mounts of its own: a small file system holds the run or a cache, and is full or read-only.
After the refusal it gets space, and the same command must finish with the very bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PHASES = {0: "phase0_data", 1: "phase1_baseline", 4: "phase4_explora", 2: "phase2_threshold", 3: "phase3_gate",
          5: "phase5_scrc", 6: "phase6_export"}  # fmt: skip
# What must not depend on a fault: weights, answers, threshold, calibration, promise and policy.
_RESULTS = ("*.safetensors", "*.parquet", "threshold.json", "calibration.json", "scrc.json", "policy.json")
_ROOMY = 2**30
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000


@dataclass(frozen=True)
class Trial:
    """One fault: its kind, the phase that meets it, and how much is free or what is damaged."""

    kind: str
    phase: int
    amount: float = 0.0


@dataclass(frozen=True)
class Reference:
    """An undisturbed run, the recipe that made it, and the caches that it filled."""

    recipe: Path
    run: Path
    scratch: Path


def make_reference(folder: Path, phases: Sequence[int] = (1, 4, 2, 3, 5, 6)) -> Reference:
    """Run a tiny recipe once."""
    from conftest import STAGE_A, TINY_RECIPE, tiny_backbone, write_parquet_source, write_recipe

    folder.mkdir(parents=True, exist_ok=True)
    source = write_parquet_source(folder / "source", groups=40, official_test=10, unclear=3)
    tiny_backbone("dinov2", layers=2).save_pretrained(folder / "backbone")
    content = TINY_RECIPE | {
        "data": {**TINY_RECIPE["data"], "source": str(source)},
        "model": {"backbone": str(folder / "backbone"), "image_size": 28},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 2, "save_total_limit": 1},
        "phase2": {"n_resamples": 100},
        "phase3": {"num_train_epochs": 1, "folds": 2, "n_resamples": 100},
        "phase4": STAGE_A | {"objective": "mae", "max_steps": 2, "probe_steps": 0, "use_labeled_data": False},
        "phase5": {"n_resamples": 100, "risk": {"alpha": 0.6, "delta": 0.3}},
        "phase6": {"n_resamples": 100},
    }
    reference = Reference(write_recipe(folder / "tiny.yaml", content), folder / "run", folder)
    _in_a_process(_be_reference, reference, phases)
    assert (reference.run / PHASES[phases[-1]] / "manifest.json").is_file()
    return reference


def _be_reference(reference: Reference, phases: Sequence[int]) -> None:
    multiprocessing.set_start_method(None, force=True)
    code, out, err = _attempt(reference, ["--phases", ",".join(map(str, phases)), "--run-dir", str(reference.run)])
    assert code == 0, (out[-2000:], err[-2000:])


def _in_a_process(function: Callable[..., None], *arguments: Any) -> int | None:
    """Run a function in a process that is forked from one with the libraries, and without threads. The exit code."""
    from ranks import PRELOADED

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "natix_hf.cli", "natix_hf.phases.phase5_scrc"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def _attempt(reference: Reference, arguments: list[str]) -> tuple[int, str, str]:
    """`natix-hf run` in a process of its own, which inherits what is imported and mounted here."""
    from natix_hf import cli

    streams = [reference.scratch / f".{os.getpid()}-{time.monotonic_ns()}-{name}" for name in ("out", "err")]
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, path in zip((1, 2), streams, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
            os.chdir(reference.scratch)
            tempfile.tempdir = None
            cli.main(["run", str(reference.recipe), *arguments])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException as error:
            os.write(2, f"Traceback of {error!r}".encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err = (path.read_text(encoding="utf-8", errors="replace") for path in streams)
    for path in streams:
        path.unlink()
    return code, out, err


def can_mount() -> bool:
    """Whether a process may make mounts of its own here: Linux, as root or with user namespaces."""
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        return False
    child = os.fork()
    if child == 0:
        try:
            _own_mounts()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _own_mounts() -> None:
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS | (_NEW_USER if user else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("--make-rprivate", "/")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def _small_disk(place: Path) -> Callable[[float | None], None]:
    """Mount a file system of its own at `place`. The result sets how many bytes of it are free; None is plenty."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={_ROOMY}", "tmpfs", str(place))

    def resize(free: float | None) -> None:
        facts = os.statvfs(place)
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        _mount("-o", f"remount,size={_ROOMY if free is None else max(4096, used + int(free))}", str(place))

    return resize


def _read_only(place: Path) -> Callable[[], None]:
    _mount("--bind", str(place), str(place))
    _mount("-o", "remount,ro,bind", str(place))
    return lambda: _mount("-o", "remount,rw,bind", str(place))


def try_one(reference: Reference, trial: Trial, seed: int) -> tuple[str, str]:
    """What a fault led to: `noticed` and continued equal, `completed` without meeting it, or `missed` and why."""
    from datasets import config

    _own_mounts()
    place = reference.scratch / f"trial-{os.getpid()}"
    resize, run = _small_disk(place), place / "run"
    upstream = [] if trial.kind == "cold cache full" else list(PHASES)[: list(PHASES).index(trial.phase)]
    run.mkdir()
    for path in reference.run.iterdir() if upstream else ():
        if path.name in PHASES.values() and path.name not in [PHASES[number] for number in upstream]:
            continue
        copy: Any = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, run / path.name)
    arguments = ["--phases", str(trial.phase or 1), "--run-dir", str(run)]
    own, datasets_cache = place / "own", Path(config.HF_DATASETS_CACHE)
    own.mkdir()
    before = "phase"
    if trial.kind == "run folder full":
        resize(trial.amount * _size(reference.run / PHASES[trial.phase]))
        undo, named, wanted = (lambda: resize(None)), [str(run), "disk is full", "free"], (1, 2)
    elif trial.kind == "run folder read-only":
        undo, named, wanted = _read_only(place), [str(run), "--run-dir"], (1, 2)
    elif trial.kind == "cold cache full":
        fill = _small_disk(datasets_cache)
        fill(trial.amount * 2**18)
        undo, named, wanted = (lambda: fill(None)), [str(datasets_cache.parent), "disk is full", "HF_"], (1, 2)
    elif trial.kind == "HF_HOME read-only":
        _small_disk(datasets_cache)
        undo, named, wanted = _read_only(datasets_cache), [str(datasets_cache.parent), "HF_"], (2,)
        before = "no phase"
    elif trial.kind == "features full":
        os.environ["NATIX_HF_CACHE"] = str(own / "features")
        fill = _small_disk(own / "features")
        fill(65536 + trial.amount * 2**14)
        undo, named, wanted = (lambda: fill(None)), ["NATIX_HF_CACHE", "disk is full"], (1, 2)
    elif trial.kind == "TMPDIR read-only":
        os.environ["TMPDIR"] = str(own)
        undo, named, wanted = _read_only(own), ["TMPDIR"], (2,)
        before = "no phase"
    else:
        return _try_damage(reference, run, random.Random(seed))
    code, out, err = _attempt(reference, arguments)
    lines = [line for line in err.splitlines() if line.startswith("natix-hf: ")]
    told = lines[-1] if lines else err[-300:]
    if code == 0:
        problem = _differs(reference, run, trial.phase)
        return ("missed", problem) if problem else ("completed", "")
    if code not in wanted or len(lines) != 1 or "Traceback" in err or not all(fact in told for fact in named):
        return "missed", f"exit code {code}: {told}"
    if before == "no phase" and "phase 0" in out:
        return "missed", "named only after phase 0 began"
    undo()
    code, out, err = _attempt(reference, arguments)
    if code != 0:
        return "missed", f"not continued, exit code {code}: {err[-300:]}"
    problem = _differs(reference, run, trial.phase)
    return ("missed", problem) if problem else ("noticed", told)


def _try_damage(reference: Reference, run: Path, rng: random.Random) -> tuple[str, str]:
    """A file of a finished phase is cut short or changed before the later phases run."""
    files = [path for path in sorted(run.glob("phase*/**/*")) if path.is_file()]
    damaged = rng.choice([path for path in files if path.stat().st_size])
    data = bytearray(damaged.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    damaged.write_bytes(data)
    what = damaged.relative_to(run).as_posix()
    finished = ",".join(str(number) for number, name in PHASES.items() if number and (reference.run / name).is_dir())
    code, _, err = _attempt(reference, ["--phases", finished, "--run-dir", str(run)])
    lines = [line for line in err.splitlines() if line.startswith("natix-hf: ")]
    if code == 0:
        made = [number for number, name in PHASES.items() if (reference.run / name).is_dir()]
        problem = next(filter(None, (_differs(reference, run, number) for number in made)), "")
        return ("missed", f"{what} damaged: {problem}") if problem else ("noticed", f"{what}: remade")
    if code in (1, 2) and len(lines) == 1 and "Traceback" not in err and damaged.name in lines[0]:
        return "noticed", lines[0]
    return "missed", f"{what} damaged, exit code {code}: {err[-300:]}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _differs(reference: Reference, run: Path, phase: int) -> str:
    """The first result of a phase that is not, byte for byte, the reference's."""
    folder, wanted = run / PHASES[phase], reference.run / PHASES[phase]
    for pattern in _RESULTS:
        for path in sorted(wanted.rglob(pattern)):
            mine = folder / path.relative_to(wanted)
            if not mine.is_file() or _sha256(mine) != _sha256(path):
                return f"{path.relative_to(reference.run)} is another than without the fault"
    return "" if (folder / "manifest.json").is_file() else f"{folder} has no manifest"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _be_trial(reference: Reference, trial: Trial, seed: int, answer: Path) -> None:
    multiprocessing.set_start_method(None, force=True)
    try:
        found = try_one(reference, trial, seed)
    except BaseException as error:
        found = ("missed", f"the trial itself failed: {error!r}")
    answer.write_text(json.dumps(found))


def try_disks(reference: Reference, trials: Sequence[Trial], seed: int = 0) -> Counter[tuple[str, str]]:
    """Try faults one after another. Count (kind, outcome), and print what was missed."""
    counts: Counter[tuple[str, str]] = Counter()
    for number, trial in enumerate(trials):
        answer = reference.scratch / "answer.json"
        code = _in_a_process(_be_trial, reference, trial, seed + number, answer)
        outcome, why = json.loads(answer.read_text()) if answer.is_file() else ("missed", f"died: {code}")
        answer.unlink(missing_ok=True)
        counts[trial.kind, outcome] += 1
        print(f"{outcome}: {trial.kind}, phase {trial.phase}, {trial.amount:.2f}: {why}", flush=True)
    return counts


def draw(count: int, seed: int, phases: Sequence[int] = tuple(PHASES)) -> list[Trial]:
    """Faults of every kind and at every phase: `count` amounts for each full disk."""
    rng = random.Random(seed)
    trials = [Trial("run folder full", phase, 0.9 * rng.random()) for phase in phases for _ in range(count)]
    trials += [Trial("run folder read-only", phase) for phase in phases]
    trials += [Trial("cold cache full", 0, rng.random()) for _ in range(count)]
    trials += [Trial("features full", 1, rng.random()) for _ in range(count)]
    trials += [Trial("damage", 6) for _ in range(3 * count)]
    return [*trials, Trial("HF_HOME read-only", 0), Trial("TMPDIR read-only", 3)]


def report(counts: Counter[tuple[str, str]]) -> int:
    for kind in dict.fromkeys(kind for kind, _ in counts):
        told = ", ".join(f"{counts[kind, outcome]} {outcome}" for outcome in ("noticed", "completed", "missed"))
        print(f"{kind}: {sum(n for (k, _), n in counts.items() if k == kind)} tried, {told}")
    return 1 if any(outcome == "missed" for _, outcome in counts) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3, help="amounts of free space for each phase")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not can_mount():
        print("disks: 0 tried, because no file system can be mounted here (Linux as root or with user namespaces can)")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_HOME"], os.environ["NATIX_HF_CACHE"] = f"{scratch}/hf", f"{scratch}/features"
        reference = make_reference(Path(scratch) / "reference")
        return report(try_disks(reference, draw(given.count, given.seed), given.seed))


if __name__ == "__main__":
    sys.exit(main())
