"""The work of one process in a bulk call: which pictures are left, their answers, and the parts these are kept in."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from natix_hf.bulk.copies import copy_picture, decision_folders, explain_picture
from natix_hf.bulk.plan import Plan, Segment
from natix_hf.bulk.rows import Item, safe
from natix_hf.bulk.table import Part, Row, TableKind, encoded, write_part
from natix_hf.bundle.stream import TIMEOUT_S, BadImage
from natix_hf.data.images import name_in_message
from natix_hf.errors import DataError, UsageError, cut, printable
from natix_hf.labels import ABSTAIN, LabelNames
from natix_hf.terminal import Verbosity, minutes, verbosity

if TYPE_CHECKING:
    from natix_hf.bundle.load import Answer, Bundle

FAILED = ""  # the decision of a picture that has none, in counts
_KEEP_S, _KEEP_ROWS = 5.0, 8192  # so much is lost at the most when a process is killed
_CHUNK = 1024  # pictures that one of several processes takes at a time
_LINE_S = 60.0  # between two lines about the progress where there is no terminal
_SHOWN = 20


@dataclass(frozen=True)
class Task:
    """How pictures are answered, and what is left of them.

    Args:
        exact: A bundle that answers the same pictures beside `bundle`, or None.
        only: The decisions that are wanted; None: all, and failures.
        copy_to, explain: The folders of `--copy-to` and `--explain`, or None.
        note: Called with a line about a failed picture that has no row.
    """

    bundle: Bundle
    batch_size: int
    exact: Bundle | None = None
    only: frozenset[str] | None = None
    copy_to: Path | None = None
    explain: Path | None = None
    timeout_s: float | None = TIMEOUT_S
    note: Callable[[str], None] = lambda line: None


@dataclass
class Done:
    """What one process did in this call."""

    pictures: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    copied: int = 0
    explained: int = 0
    noted: int = 0

    SUMS: ClassVar = ("pictures", "copied", "explained")


def wanted_decisions(only: Sequence[str], labels: LabelNames) -> frozenset[str] | None:
    """The decisions that `--only` asks for: abstain, yes, no, or the bundle's own names of these answers.

    Raises:
        UsageError: if a word is none of them, or means one answer and is the name of the other.
    """
    words = {"yes": labels.yes, "no": labels.no, ABSTAIN: ABSTAIN}
    own = {labels.yes.casefold(): labels.yes, labels.no.casefold(): labels.no}
    wanted = set()
    for word in only:
        plain = word.casefold()
        meant = {found for found in (words.get(plain), own.get(plain)) if found is not None}
        if len(meant) > 1:
            raise UsageError(f"--only {word} is unclear: this bundle's answers are yes {labels.yes}, no {labels.no}")
        if not meant:
            raise UsageError(f"--only {cut(word)}: say abstain, yes ({labels.yes}) or no ({labels.no})")
        wanted |= meant
    return frozenset(wanted) if only else None


def answered(task: Task, items: Iterable[Item]) -> Iterator[tuple[Item, Answer, Answer]]:
    """Answer items in order, as they come: the item, the answer, and that of `task.exact` (or the same again)."""
    waiting: deque[Item] = deque()

    def cells() -> Iterator[Any]:
        for item in items:
            waiting.append(item)
            yield None if item.problem is not None else item.cell

    if task.exact is not None:
        pairs: Iterable[tuple[Answer, Answer]] = task.bundle.stream_beside(task.exact, cells(), task.batch_size)
    else:
        answers = task.bundle.stream(cells(), task.batch_size, task.timeout_s)
        pairs = ((answer, answer) for answer in answers)
    for answer, exact in pairs:
        item = waiting.popleft()
        yield item, _checked(answer, item), _checked(exact, item)


def _checked(answer: Answer, item: Item) -> Answer:
    """The answer, with a failure named after the item."""
    if isinstance(answer, BadImage):
        if item.problem is not None:
            return BadImage(item.name, item.problem)
        # The stream knows the whole path of a file, and of a cell nothing but its place.
        name = name_in_message(answer.name)
        named = answer.problem.startswith(name)
        return BadImage(item.name, f"{printable(item.name)}{answer.problem[len(name) :]}" if named else answer.problem)
    return answer


def leave(task: Task, item: Item, answer: Answer, exact: Answer, done: Done) -> bool:
    """Count an answer, and leave its copy and heatmap. Returns False if it is one of those that are not wanted."""
    done.pictures += 1
    if isinstance(answer, BadImage) or isinstance(exact, BadImage):
        done.counts[FAILED] += 1
        if task.only is None:
            return True
        done.noted += 1
        if done.noted == _SHOWN + 1:
            task.note("failed   others are counted and not shown")
        elif done.noted <= _SHOWN:
            task.note(f"failed   {answer.problem if isinstance(answer, BadImage) else item.name}")
        return False
    done.counts[answer.decision] += 1
    if task.only is not None and answer.decision not in task.only:
        return False
    if task.copy_to is not None:
        place = decision_folders(task.bundle.policy.labels)[answer.decision]
        try:
            done.copied += copy_picture(task.copy_to / place, item)
        except FileNotFoundError:
            raise DataError(f"{item.name} was answered and is gone: it cannot be copied") from None
    if task.explain is not None:
        done.explained += explain_picture(task.explain, item, task.bundle)
    return True


def row_of(item: Item, answer: Answer, exact: Answer) -> Row:
    """The row of an answer, or of a picture that has none."""
    if isinstance(answer, BadImage) or isinstance(exact, BadImage):
        bad = answer if isinstance(answer, BadImage) else exact
        assert isinstance(bad, BadImage)
        empty = dict.fromkeys(("decision", "label", "probability", "threshold", "accepted", "float32_decision"))
        return empty | {"image": item.name, "error": safe(bad.problem)}
    return {
        "image": item.name,
        "decision": answer.decision,
        "label": answer.label,
        "probability": answer.probability,
        "threshold": answer.threshold,
        "accepted": answer.accepted,
        "error": None,
        "float32_decision": exact.decision,
    }


@dataclass(frozen=True)
class Desk:
    """Where one of several processes keeps its answers.

    Args:
        folder: The folder of parts.
        rank, world: Which process this is, and of how many.
    """

    folder: Path
    columns: tuple[str, ...]
    kind: TableKind
    rank: int = 0
    world: int = 1


def work(task: Task, desk: Desk, plan: Plan, segments: Sequence[Segment], parts: Sequence[Part]) -> Done:
    """Answer what is left of this process's share, segment by segment. Batches begin at multiples of the batch size,
    whatever was answered before, so that answers are the same bit for bit."""
    done = Done()
    left = [_Left(segment, parts, desk, task.batch_size) for segment in segments]
    counts = [each.count for each in left]
    with closing(_Progress(None if None in counts else sum(count or 0 for count in counts), desk.rank)) as progress:
        for each in left:
            if each.count != 0:
                _answer_segment(task, desk, plan, each, done, progress)
    return done


def _answer_segment(task: Task, desk: Desk, plan: Plan, left: _Left, done: Done, progress: _Progress) -> None:
    places: deque[int] = deque()
    number, batch = left.segment.number, task.batch_size
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    start = following = 0
    kept = time.monotonic()

    def keep() -> None:
        nonlocal kept, counts
        if following > start:
            body = encoded(rows, desk.columns, desk.kind)
            write_part(desk.folder, number, start, following, body, len(rows), counts, False)
        rows.clear()
        counts, kept = Counter(), time.monotonic()

    def items() -> Iterator[Item]:
        for place, item in left.items(plan):
            places.append(place)
            yield item

    for item, answer, exact in answered(task, items()):
        place = places.popleft()
        if place != following:
            keep()
            start = following = place
        wanted = leave(task, item, answer, exact, done)
        failed = isinstance(answer, BadImage) or isinstance(exact, BadImage)
        counts[FAILED if failed else answer.decision] += 1  # type: ignore[union-attr]
        if wanted:
            rows.append(row_of(item, answer, exact))
        following = place + 1
        if following % batch == 0:
            progress.show(done.pictures)
            if following - start >= _KEEP_ROWS or time.monotonic() - kept >= _KEEP_S:
                keep()
                start = following
    keep()
    if left.segment.count is None and desk.rank == 0:  # now the end is known
        write_part(desk.folder, number, left.seen, left.seen, b"", 0, Counter(), True)


class _Left:
    """The places of a segment that are this process's and have no answer yet.

    Args:
        count: How many there are; None: not known.
        seen: After `items`: where the segment ends.
    """

    def __init__(self, segment: Segment, parts: Sequence[Part], desk: Desk, batch_size: int) -> None:
        self.segment, self.desk = segment, desk
        self.covered = [(part.start, part.stop) for part in parts if part.segment == segment.number]
        end = next((part.stop for part in parts if part.segment == segment.number and part.end), None)
        self.stop = segment.count if segment.count is not None else end
        self.chunk = -(-_CHUNK // batch_size) * batch_size
        self.seen = 0
        self.count = None if self.stop is None else sum(stop - start for start, stop in self._runs(self.stop))

    def _runs(self, end: int) -> Iterator[tuple[int, int]]:
        """The runs of places that are left, before `end`."""
        at = 0
        for start, stop in [*self.covered, (end, end)]:
            yield from self._own(at, min(start, end))
            at = max(at, stop)

    def _own(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if self.desk.world == 1:
            if stop > start:
                yield start, stop
            return
        while start < stop:
            end = min(stop, (start // self.chunk + 1) * self.chunk)
            if (start // self.chunk) % self.desk.world == self.desk.rank:
                yield start, end
            start = end

    def items(self, plan: Plan) -> Iterator[tuple[int, Item]]:
        if self.segment.rows is None:
            assert self.stop is not None
            for start, stop in self._runs(self.stop):
                yield from enumerate(plan.items(self.segment, start, stop), start)
            return
        # A table is read once from its first open place to its last: finding a place in it anew may be slow.
        runs = self._runs(self.stop if self.stop is not None else sys.maxsize)
        run = next(runs, None)
        self.seen = 0 if run is None else run[0]
        for place, item in enumerate(plan.items(self.segment, self.seen, self.stop), self.seen):
            self.seen = place + 1
            while run is not None and place >= run[1]:
                run = next(runs, None)
            if run is None:
                return
            if place >= run[0]:
                yield place, item


class _Progress:
    """A bar on a terminal, and a line now and then elsewhere, of the first process. `--quiet` hides both."""

    def __init__(self, total: int | None, rank: int) -> None:
        from tqdm.auto import tqdm

        quiet = verbosity() == Verbosity.QUIET or rank > 0
        self.total, self.begun, self.told = total, time.monotonic(), time.monotonic()
        self.bar = tqdm(total=total, unit=" pictures", disable=True if quiet else None, leave=False, file=sys.stderr)
        self.lines = not quiet and self.bar.disable

    def show(self, done: int) -> None:
        self.bar.update(done - self.bar.n)
        now = time.monotonic()
        if self.lines and now - self.told >= _LINE_S:
            self.told = now
            pace = done / (now - self.begun)
            rest = "" if self.total is None else f" of {self.total:,}, {minutes((self.total - done) / pace)} left"
            print(f"answered {done:,}{rest} ({pace:,.1f} pictures/s)", file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        self.bar.close()
