"""Power loss at every moment: no manifest, checkpoint mark or run file may name what is not on the disk.

Real phases run while every call that changes a name or flushes something is recorded, with a look at the folder's
files and names at each. The recording is replayed on a file system that keeps only what it must: content that was
flushed, and names in folders that were flushed afterwards. Any further change may have reached the disk or not.
Content that was not flushed is gone. Files that libraries write without Python's knowledge are seen by the look.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_CALLS = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")
MARKS = ("manifest.json", "complete.json", "bundle_manifest.json")
_ROOT = 0
Content = bytes | str  # of a mark its bytes, of any other file the sha256


@dataclass
class Change:
    """A change of names that happens as a whole: (folder, name, what has the name now or None)."""

    names: list[tuple[int, str, int | None]]
    unflushed: set[int]


@dataclass
class Disk:
    """What is on the disk for sure, and the changes that may be."""

    names: dict[int, dict[str, int]] = field(default_factory=lambda: {_ROOT: {}})
    content: dict[int, Content] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def flush_folder(self, folder: int) -> None:
        for change in self.pending:
            change.unflushed.discard(folder)
        for change in [change for change in self.pending if not change.unflushed]:
            apply(self.names, change)
        self.pending = [change for change in self.pending if change.unflushed]

    def forget(self) -> None:
        """Drop removals inside folders that no state can hold under a name that counts."""
        reachable, waiting = {_ROOT}, [_ROOT]
        children: dict[int, set[int]] = {}
        named = [(folder, name, to) for folder, names in self.names.items() for name, to in names.items()]
        for folder, name, to in [*named, *(names for change in self.pending for names in change.names)]:
            if to is not None and not name.startswith(".tmp"):
                children.setdefault(folder, set()).add(to)
        while waiting:
            below = children.get(waiting.pop(), set()) - reachable
            reachable |= below
            waiting += below
        self.pending = [
            change
            for change in self.pending
            if any(to is not None or folder in reachable for folder, _, to in change.names)
        ]


def apply(names: dict[int, dict[str, int]], change: Change) -> None:
    for folder, name, to in change.names:
        place = names.setdefault(folder, {})
        if to is None:
            place.pop(name, None)
        else:
            place[name] = to


class Recording:
    """Follows a folder through the calls of this process, and judges every state that a power loss could leave."""

    def __init__(self, root: Path, seed: int = 0, drawn: int = 8) -> None:
        self.root, self.disk = root, Disk()
        self.moments = self.states = 0
        self.found: dict[str, int] = {}
        self._numbers: dict[int, int] = {root.stat().st_ino: _ROOT}  # by inode, while it is seen
        self._next = 1
        self._folders: dict[int, dict[str, int]] = {_ROOT: {}}
        self._versions: dict[int, tuple[int, int]] = {}
        self._content: dict[int, Content] = {}
        self._begun_in: dict[int, Content | None] = {}
        self._random, self._drawn = random.Random(seed), drawn
        self.look()

    def look(self) -> bool:
        """See what the folder holds now. What is new since the last look is on no disk yet.

        Returns:
            Whether anything is new.
        """
        versions = dict(self._versions)
        folders: dict[int, dict[str, int]] = {}
        numbers: dict[int, int] = {self.root.stat().st_ino: _ROOT}
        self._scan(str(self.root), _ROOT, folders, numbers)
        changed: list[tuple[int, str, int | None]] = []
        for folder in {*folders, *self._folders}:
            old, new = self._folders.get(folder, {}), folders.get(folder, {})
            changed += [(folder, name, new.get(name)) for name in {*old, *new} if old.get(name) != new.get(name)]
        moved = {to for _, _, to in changed if to is not None}
        taken: set[int] = set()
        for folder, name, to in sorted(changed, key=lambda change: change[2] is None):
            gone = self._folders.get(folder, {}).get(name)
            if to is None and gone in moved:
                continue  # the other half of a rename, below
            names: list[tuple[int, str, int | None]] = [(folder, name, to)]
            if to is not None and to not in taken:
                taken.add(to)
                names += [
                    (where, was, None)
                    for where, was, none in changed
                    if none is None and self._folders.get(where, {}).get(was) == to
                ]
            self.disk.pending.append(Change(names, {where for where, _, _ in names}))
        self._folders, self._numbers = folders, numbers
        if changed:
            self.disk.forget()
        return bool(changed) or versions != self._versions

    def _scan(self, path: str, number: int, folders: dict[int, dict[str, int]], numbers: dict[int, int]) -> None:
        names = folders[number] = {}
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mine = self._numbers.get(facts.st_ino, numbers.get(facts.st_ino))
                if mine is None or (mine in self._folders) != entry.is_dir(follow_symlinks=False):
                    mine, self._next = self._next, self._next + 1
                numbers[facts.st_ino] = names[entry.name] = mine
                if entry.is_dir(follow_symlinks=False):
                    self._scan(entry.path, mine, folders, numbers)
                elif self._versions.get(mine) != (facts.st_size, facts.st_mtime_ns):
                    self._versions[mine] = (facts.st_size, facts.st_mtime_ns)
                    data = Path(entry.path).read_bytes()
                    is_mark = entry.name in MARKS or "manifest.json" in entry.name or "complete.json" in entry.name
                    keep = is_mark or entry.name in ("run.json", "in_progress.json") or ".json-" in entry.name
                    self._content[mine] = data if keep else hashlib.sha256(data).hexdigest()

    def flushed(self, inode: int) -> None:
        number = self._numbers.get(inode)
        if number in self._folders:
            self.disk.flush_folder(number)
        elif number is not None:
            self.disk.content[number] = self._content[number]

    def judge(self) -> None:
        """Build the states that a power loss now could leave, and note what is wrong in any of them."""
        pending = self.disk.pending
        chosen = [set(), set(range(len(pending)))]
        chosen += [{i} for i in range(len(pending))] + [set(range(len(pending))) - {i} for i in range(len(pending))]
        chosen += [{i for i in range(len(pending)) if self._random.random() < 0.5} for _ in range(self._drawn)]
        for kept in {frozenset(choice) for choice in chosen}:
            names = {folder: dict(inside) for folder, inside in self.disk.names.items()}
            for i in sorted(kept):
                apply(names, pending[i])
            self.states += 1
            for problem in self._problems(names):
                self.found[problem] = self.found.get(problem, 0) + 1

    def _problems(self, names: dict[int, dict[str, int]]) -> Iterator[str]:
        files: dict[str, int] = {}
        _walk(names, _ROOT, "", files)
        for path, number in files.items():
            at = PurePosixPath(path)
            if any(part.startswith(".tmp") for part in at.parts):
                continue
            if at.name == "run.json" or at.name in MARKS:
                kept = self.disk.content.get(number)
                if kept != self._content.get(number):
                    yield f"{_kind(path)} was named before it was flushed"
                elif at.name in MARKS:
                    yield from self._unkept(path, json.loads(kept), files)
            if at.name == "complete.json" and "phase1_baseline" in at.parts:
                yield from self._foreign(path, number, files)

    def _unkept(self, path: str, mark: dict[str, Any], files: dict[str, int]) -> Iterator[str]:
        folder = PurePosixPath(path).parent
        for name, facts in mark["files"].items():
            number = files.get(str(folder / name))
            if number is None:
                yield f"{_kind(path)} names {PurePosixPath(name).name}, which is not there"
            elif (kept := self.disk.content.get(number)) is None:
                yield f"{_kind(path)} names {PurePosixPath(name).name}, whose content was not flushed"
            elif (hashlib.sha256(kept).hexdigest() if isinstance(kept, bytes) else kept) != facts["sha256"]:
                yield f"{_kind(path)} names {PurePosixPath(name).name}, which holds something else"
        for above in mark.get("upstream", {}):
            places = (folder.with_name(above), folder.with_name(f"{above}.set_aside"))
            if not any(str(place / "manifest.json") in files for place in places):
                yield f"{_kind(path)} was made from {above}, which is not there"

    def _foreign(self, path: str, number: int, files: dict[str, int]) -> Iterator[str]:
        """A checkpoint beside the mark of another attempt would be continued by it."""
        phase = path[: path.index("phase1_baseline") + len("phase1_baseline")]
        attempt = files.get(f"{phase}/in_progress.json")
        now = self._content.get(attempt) if attempt is not None else None
        if now is None:
            return
        begun = self._begun_in.setdefault(number, now)
        if begun != now:
            yield "a checkpoint lies beside the mark of another attempt"

    def note_attempts(self) -> None:
        """Remember beside which attempt each complete checkpoint was made."""
        files: dict[str, int] = {}
        _walk(self._folders, _ROOT, "", files)
        for path, number in files.items():
            if path.endswith("complete.json") and "/phase1_baseline/" in path and number not in self._begun_in:
                phase = path[: path.index("phase1_baseline") + len("phase1_baseline")]
                attempt = files.get(f"{phase}/in_progress.json")
                if attempt is not None:
                    self._begun_in[number] = self._content.get(attempt)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Follow this process while the block runs."""
        real = {name: getattr(os, name) for name in _CALLS}

        def watched(name: str) -> Callable[..., Any]:
            def call(*given: Any, **options: Any) -> Any:
                self.moments += 1
                inode = os.fstat(given[0]).st_ino if name == "fsync" else None
                done = None if inode is not None else real[name](*given, **options)
                if self.look():
                    self.note_attempts()
                    self.judge()
                if inode is not None:  # what follows a flush could have followed without it: no new state
                    done = real[name](*given, **options)
                    self.flushed(inode)
                return done

            return call

        for name in _CALLS:
            setattr(os, name, watched(name))
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)
            self.look()
            self.judge()


def _walk(names: dict[int, dict[str, int]], folder: int, prefix: str, files: dict[str, int]) -> None:
    for name, number in names.get(folder, {}).items():
        if number in names:
            _walk(names, number, f"{prefix}{name}/", files)
        else:
            files[prefix + name] = number


def _kind(path: str) -> str:
    parts = PurePosixPath(path).parts
    return f"{next((part for part in parts if part.startswith('phase')), parts[-1])}: {parts[-1]}"


class _Cut(BaseException):
    """Ends a training, as a kill would."""


def chain(folder: Path, phases: list[int], recording: Recording, run_dir: Path) -> None:
    """A run of these phases, phase 2 once more with another objective, a training that is cut off and left for
    another, and phase 1 once more with other settings."""
    from conftest import TINY_RECIPE, write_parquet_source, write_recipe

    from natix_hf.pipeline import run_recipe
    from natix_hf.trainers import base

    source = write_parquet_source(folder / "source", groups=40, official_test=10)
    stage = {**TINY_RECIPE["phase1"], "num_train_epochs": 2, "save_total_limit": 1}
    content = TINY_RECIPE | {"data": {**TINY_RECIPE["data"], "source": str(source)}, "phase1": stage}
    recipe = str(write_recipe(folder / "tiny.yaml", content))
    marked = base.mark_complete

    def cut(checkpoint: Path) -> None:
        marked(checkpoint)
        raise _Cut

    with recording.on():
        run_recipe(recipe, phases, run_dir)
        run_recipe(recipe, [2], run_dir, overrides=["phase2.objective=f1"])
        base.mark_complete = cut
        try:
            run_recipe(recipe, [1], run_dir, overrides=["phase1.learning_rate=1e-3"])
        except _Cut:
            pass
        finally:
            base.mark_complete = marked
        run_recipe(recipe, [1], run_dir, overrides=["phase1.learning_rate=3e-3"])


def lose_power(folder: Path, phases: list[int], seed: int = 0, drawn: int = 8) -> Recording:
    """Record a chain of phases below `folder`, and judge every state that a power loss could leave."""
    (folder / "disk").mkdir(parents=True)
    recording = Recording(folder / "disk", seed, drawn)
    chain(folder, phases, recording, folder / "disk" / "outputs" / "run")
    return recording


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="random states at each moment, beside others")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NATIX_HF_CACHE"] = f"{scratch}/cache"
        recording = lose_power(Path(scratch), [1, 2, 3, 5, 6], given.seed, given.count)
    missed = sum(recording.found.values())
    print(
        f"power loss: {recording.moments} moments, {recording.states} states, {missed} that name what is not there, "
        f"{time.monotonic() - begin:.0f} s"
    )
    for problem, count in sorted(recording.found.items()):
        print(f"  {count} x {problem}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
