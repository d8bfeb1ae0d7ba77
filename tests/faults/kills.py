"""Kills and signals at random moments of a small run, over every phase, then the same command again.

    python tests/faults/kills.py [--count N] [--signals N] [--ranks N] [--seed S]

One line for each kind: tried, completed, missed. Missed is a run that does not complete, a manifest that names a
missing or wrong file after the kill, a result that differs from that of the run that nobody disturbed, or a wrong exit
code of a signal. The exit code is 1 if anything was missed.

Every run is forked from one process that has imported the libraries, which takes longer than the run itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from conftest import explora_recipe, tiny_backbone, write_parquet_source
from ranks import PRELOADED

from natix_hf.provenance.owner import OWNER
from natix_hf.resources import resource_folder
from natix_hf.runs.graph import ORDER, PHASES

LIMIT_S = 300.0
# What must be bit-equal to the undisturbed run: weights, logits, logs of the trainings, threshold, temperature,
# certificate and policy. Not the manifests and reports, which hold times and paths.
EQUAL = {".safetensors", ".parquet"}
EQUAL_NAMES = {"history.json", "self_supervised_history.json", "threshold.json", "calibration.json", "policy.json"}
EQUAL_NAMES |= {"promise.json", "gate.json", "splits.json", "rows_read.json", "evaluation.json"}
# Where a chain of kills hits, in the order of the phases: those that work longest more often.
STATIONS = (0, 1, 1, 4, 4, 2, 3, 5, 6, 6)


class Chains:
    """A recipe, its undisturbed run, and runs that are killed and continued."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.random = folder, random.Random(seed)
        tiny_backbone("dinov2", layers=2).save_pretrained(folder / "backbone")
        source = write_parquet_source(folder / "source", groups=60, official_test=30, unclear=3)
        short = {"num_train_epochs": 1, "adapter": "lora", "dataloader_num_workers": 0}
        recipe = explora_recipe(
            folder, source, folder / "backbone", objective="mae", max_steps=4, probe_steps=2, supervised=short
        )
        self.arguments = [
            recipe, "--phases", "all", "phase1.adapter=lora", "phase1.num_train_epochs=1",
            "phase1.save_strategy=steps", "phase1.save_steps=2", "phase1.eval_strategy=steps", "phase1.eval_steps=2",
            "phase1.logging_steps=3", *(f"phase{n}.n_resamples=100" for n in (2, 3, 5, 6)), "phase5.risk.alpha=0.6",
            "phase5.risk.delta=0.3", "data.target_prior=0.5",
        ]  # fmt: skip
        os.environ |= {"NATIX_HF_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*PRELOADED, "natix_hf.cli", "natix_hf.phases.phase5_scrc"])
        self.missed: list[str] = []
        self.seconds: dict[int, float] = {}
        self.whole = folder / "undisturbed"
        process = self.start(self.whole)
        for number in ORDER:
            begin = self.reached(self.whole, number, process)
            self.wait_for(lambda n=number: finished(self.whole, n), process)
            self.seconds[number] = time.monotonic() - begin
        self.ended(process, 0, self.whole, "the undisturbed run")
        self.expected = results(self.whole)
        if len(self.expected) < 15 or self.missed:
            raise SystemExit(f"the undisturbed run left {len(self.expected)} results: {self.missed}")

    def start(self, run: Path, *more: str) -> Any:
        arguments = ["run", *self.arguments, "--run-dir", str(run), *more]
        process = self.context.Process(target=be_a_run, args=(arguments, str(run) + ".txt"))
        process.start()
        return process

    def wait_for(self, what: Callable[[], bool], process: Any) -> None:
        end = time.monotonic() + LIMIT_S
        while not what() and process.is_alive() and time.monotonic() < end:
            time.sleep(0.002)

    def reached(self, run: Path, number: int, process: Any) -> float:
        """Wait until the process is at work and a phase has begun, and return the time."""
        folder = run / PHASES[number].folder
        self.wait_for(lambda: at_work(run, process.pid), process)  # a phase may have finished before it began
        self.wait_for(lambda: (folder / "in_progress.json").is_file() or finished(run, number), process)
        return time.monotonic()

    def hit(self, run: Path, number: int, signum: int, to_group: bool = True) -> tuple[str, Any]:
        """Start or continue a run, and send a signal at a random moment of a phase. Returns where it hit."""
        process = self.start(run)
        self.reached(run, number, process)
        moment = time.monotonic() + self.random.random() * self.seconds[number]
        self.wait_for(lambda: time.monotonic() > moment or finished(run, number), process)
        at = str(number) if (run / PHASES[number].folder / "in_progress.json").is_file() else f"end of {number}"
        with suppress(ProcessLookupError):  # it has just ended
            (os.killpg if to_group else os.kill)(process.pid, signum)
        return at, process

    def ended(self, process: Any, code: int, run: Path, what: str) -> None:
        process.join(LIMIT_S)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            self.missed.append(f"{what}: had not ended after {LIMIT_S:.0f} s")
        elif process.exitcode != code:
            self.missed.append(f"{what}: exit code {process.exitcode}, not {code}: {tail(run)}")

    def check(self, run: Path, what: str) -> None:
        self.missed += [f"{what}: {problem}" for problem in wrong_manifests(run)]

    def complete(self, run: Path, what: str) -> None:
        """Continue to the end, compare with the undisturbed run, and remove what is right."""
        before = len(self.missed)
        self.ended(self.start(run), 0, run, what)
        found = results(run)
        names = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
        self.missed += [f"{what}: {name} differs from that of the undisturbed run" for name in names]
        self.check(run, what)
        if len(self.missed) == before:
            shutil.rmtree(run)

    def kills(self, count: int) -> Counter[str]:
        """SIGKILL of the process group at random moments of all phases, in chains."""
        hits: Counter[str] = Counter()
        for chain, begin in enumerate(range(0, count, len(STATIONS))):
            run, many = self.folder / f"killed-{chain}", min(count - begin, len(STATIONS))
            for i in range(many):  # a short chain skips stations, and reaches the last phases too
                at, process = self.hit(run, STATIONS[(2 * i + 1) * len(STATIONS) // (2 * many)], signal.SIGKILL)
                hits[at] += 1
                process.join()
                self.check(run, f"kill {begin + i} in phase {at}")
            self.complete(run, f"chain {chain}")
        return hits

    def signals(self, count: int) -> Counter[str]:
        """SIGTERM, SIGINT and SIGHUP at random moments, to the process or its group."""
        hits: Counter[str] = Counter()
        for i in range(count):
            signum = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[i % 3]
            number, run = STATIONS[(i * 3 + 1) % len(STATIONS)], self.folder / f"signalled-{i // 5}"
            at, process = self.hit(run, number, signum, to_group=i % 2 == 0)
            hits[at] += 1
            what = f"{signum.name} {i} in phase {at}"
            process.join(LIMIT_S)
            if not finished(run, 6) or process.exitcode:
                self.ended(process, 128 + signum, run, what)
                said = tail(run)
                if "To continue" not in said or "Traceback" in said:
                    self.missed.append(f"{what}: {said}")
            self.check(run, what)
            if i + 1 == count or (i + 1) % 5 == 0:
                self.complete(run, f"signalled chain {i // 5}")
        return hits

    def ranks(self, count: int) -> Counter[str]:
        """Two ranks through `natix-hf run --accelerate-config`: one is killed, or gets a signal."""
        hits: Counter[str] = Counter()
        config = ("--accelerate-config", str(resource_folder("accelerate_configs") / "cpu_2proc.yaml"))
        two = self.folder / "two ranks"
        self.ended(self.start(two, *config), 0, two, "the undisturbed run of two ranks")
        expected = results(two)
        for i in range(count):
            signum = (signal.SIGKILL, signal.SIGTERM)[i % 2]
            run, what = self.folder / f"ranks-{i}", f"{signum.name} to rank {i // 2 % 2}"
            process = self.start(run, *config)
            self.wait_for(lambda run=run: any(run.rglob("complete.json")), process)
            time.sleep(self.random.random())
            rank = rank_of(process.pid, i // 2 % 2)
            if rank is not None:
                rank.send_signal(signum)
            hits[what] += 1
            begin = time.monotonic()
            self.ended(process, 1 if signum == signal.SIGKILL else 128 + signum, run, what)
            if time.monotonic() - begin > 150:
                self.missed.append(f"{what}: the others ended only after {time.monotonic() - begin:.0f} s")
            self.check(run, what)
            self.ended(self.start(run, *config), 0, run, f"{what}, continued")
            found = results(run)
            names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            self.missed += [f"{what}: {name} differs from that of the undisturbed run" for name in names]
        return hits


def be_a_run(arguments: list[str], output: str) -> None:
    """In a forked process: be `natix-hf run`, as the leader of a process group."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # it was that of the parent, for a loader's workers too
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    from natix_hf.cli import main
    from natix_hf.results import plots

    plots._DPI = 40  # to draw is most of the work of the later phases
    main(arguments)


def at_work(run: Path, pid: int) -> bool:
    """True if the newest mark of the run's owner is that of a process."""
    marks = sorted((run / OWNER).glob("*.json"))
    with suppress(OSError, ValueError):  # it is being replaced
        return bool(marks) and json.loads(marks[-1].read_text())["pid"] == pid
    return False


def finished(run: Path, number: int) -> bool:
    return (run / PHASES[number].folder / "manifest.json").is_file()


def tail(run: Path) -> str:
    """What a run printed last."""
    path = Path(str(run) + ".txt")
    return path.read_text(encoding="utf-8")[-1500:] if path.is_file() else ""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(run: Path) -> dict[str, str]:
    """The digests of the files that must be equal."""
    wanted = [p for p in run.rglob("*") if p.suffix in EQUAL or p.name in EQUAL_NAMES]
    return {path.relative_to(run).as_posix(): digest(path) for path in wanted if path.is_file()}


def wrong_manifests(run: Path) -> list[str]:
    """The files that a manifest names although they are missing or others."""
    found = []
    for manifest in run.glob("phase?_*/manifest.json"):
        for name, facts in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
            path = manifest.parent / name
            if not path.is_file() or digest(path) != facts["sha256"]:
                found.append(f"{manifest} names {name}, which is missing or another")
    return found


def rank_of(pid: int, rank: int) -> psutil.Process | None:
    """The process of a rank among the descendants of a process."""
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if process.environ().get("RANK") == str(rank):
                return process
        except psutil.Error:
            continue
    return None


def main(count: int, signals: int, ranks: int, seed: int, folder: Path) -> int:
    """Run the long form and print its counts. Returns the number of what was missed."""
    chains = Chains(folder, seed)
    print(f"phases take {', '.join(f'{n}: {s:.1f} s' for n, s in chains.seconds.items())}", flush=True)
    for name, run, wanted in (
        ("SIGKILL of the group", chains.kills, count),
        ("SIGTERM, SIGINT, SIGHUP", chains.signals, signals),
        ("two ranks", chains.ranks, ranks),
    ):
        if not wanted:
            continue
        before = len(chains.missed)
        hits = run(wanted)
        where = ", ".join(f"{at}: {n}" for at, n in sorted(hits.items()))
        print(f"{name}: tried {sum(hits.values())} (phase {where}), missed {len(chains.missed) - before}", flush=True)
    for line in chains.missed:
        print(line)
    return len(chains.missed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="kills of the process group")
    parser.add_argument("--signals", type=int, default=30, help="SIGTERM, SIGINT and SIGHUP")
    parser.add_argument("--ranks", type=int, default=4, help="kills of one of two ranks, and signals to one")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    missed = main(given.count, given.signals, given.ranks, given.seed, place)
    if not missed:
        shutil.rmtree(place)
    raise SystemExit(missed > 0)
