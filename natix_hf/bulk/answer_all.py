"""Answers to many pictures in one table: folders in, a table out. A call that was interrupted goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import natix_hf
from natix_hf import terminal
from natix_hf.bulk.call import Call, about_of, parts_of, whole_name
from natix_hf.bulk.copies import require_apart
from natix_hf.bulk.rows import Columns
from natix_hf.bulk.table import COLUMNS, Summary, parts_in, table_kind
from natix_hf.bulk.team import processes
from natix_hf.bulk.work import Desk, Task, wanted_decisions, work
from natix_hf.bundle.asked import check_batch_size
from natix_hf.bundle.names import BUNDLE_MANIFEST, POLICY
from natix_hf.bundle.stream import TIMEOUT_S
from natix_hf.errors import UsageError
from natix_hf.provenance.files import file_sha256
from natix_hf.provenance.owner import owning

if TYPE_CHECKING:
    from natix_hf.bundle.load import Bundle

__all__ = ["Summary", "answer_all"]


def answer_all(
    bundle: Bundle,
    sources: str | Path | Iterable[str | Path],
    out: str | Path,
    batch_size: int = 32,
    only: str | Sequence[str] = (),
    copy_to: str | Path | None = None,
    explain: str | Path | None = None,
    image_column: str | None = None,
    split: str | None = None,
    config: str | None = None,
    restart: bool = False,
    timeout_s: float | None = TIMEOUT_S,
    exact: Bundle | None = None,
    tell: Callable[[str], None] | None = None,
) -> Summary:
    """Answer every picture of folders, patterns, lists, tables, archives and data sets in one table.

    The table appears at once, when it is complete. A call that was interrupted, even by SIGKILL or a full disk, goes
    on when it is made again: each picture stands in the table once, and its answer is the same bit for bit. In a
    process of `accelerate launch` the pictures are divided among the processes.

    Args:
        bundle ([`Bundle`]): Answers the pictures.
        sources (`str`, `Path` or several): Folders (with all below them), patterns such as `"dir/**/*.jpg"`, pictures,
            `.txt` lists of paths, parquet or arrow files, archives, `save_to_disk` folders, Hub datasets as
            `org/name`, or `"-"` for names on standard input.
        out (`str` or `Path`): The table: `.csv`, `.jsonl` or `.parquet`.
        batch_size (`int`, defaults to 32): Images per forward pass.
        only (`str` or several, *optional*): The decisions to keep: `"abstain"`, `"yes"`, `"no"`, or their names in the
            bundle.
        copy_to (`str` or `Path`, *optional*): Copy the pictures that are kept into a folder of this folder for each
            decision.
        explain (`str` or `Path`, *optional*): Write a heatmap of each answer that is kept into this folder.
        image_column (`str`, *optional*): The column of pictures in tables. Defaults to `image`, or the only one.
        split (`str`, *optional*): The split of a dataset. Defaults to all.
        config (`str`, *optional*): The configuration of a dataset on the Hub.
        restart (`bool`, defaults to `False`): Throw away what an interrupted call has answered, and replace a table
            that this function has written.
        timeout_s (`float`, *optional*): An image that is still being read after so many seconds is a bad one.
        exact ([`Bundle`], *optional*): Answers beside `bundle`; the column `float32_decision` holds its decisions.
        tell (`Callable`, *optional*): Called with lines about what was found. Default: they are printed.

    Returns:
        [`Summary`]: Counts, and where the table is.

    Raises:
        [`UsageError`]: if a source is not there or holds no pictures, if the table exists, or if what was begun
            differs from this call; the line says in what.
        [`NatixError`]: if the disk is full. The same call goes on.
    """
    begun, tell = time.monotonic(), tell or terminal.tell
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    arguments = [str(source) for source in named]
    target = Path(out)
    check_batch_size(batch_size)
    labels = bundle.policy.labels
    wanted = wanted_decisions([only] if isinstance(only, str) else only, labels)
    folders = {"copy_to": _folder(copy_to), "explain": _folder(explain)}
    task = Task(bundle, batch_size, exact, wanted, folders["copy_to"], folders["explain"], timeout_s, tell)
    columns = tuple(name for name in COLUMNS if exact is not None or name != "float32_decision")
    if not arguments:
        raise UsageError("there are no sources: name a folder of pictures")
    if explain is not None:
        from natix_hf.bundle.explain import require_explain

        require_explain(bundle)
    kind, beside = table_kind(target), (target, parts_of(target), about_of(target))
    require_apart(arguments, folders["copy_to"], folders["explain"], labels, beside)
    question = {
        "bundle": _sha256(bundle),
        "backend": bundle.backend,
        "precision": bundle.precision,
        "device": _device(bundle),
        "version": natix_hf.__version__,
        "batch_size": int(batch_size),
        "sources": [whole_name(argument) for argument in arguments],
        "only": sorted(wanted) if wanted is not None else None,
        **{name: str(folder) if folder is not None else None for name, folder in folders.items()},
        "image_column": image_column,
        "split": split,
        "config": config,
    }
    call = Call(target, kind, columns, question, arguments, Columns(image_column, split, config), tell)
    with call.naming_the_disk(), processes() as team:
        summary: Summary | None = team.share(call.find(restart) if team.first else None)
        if summary is not None:
            return summary
        try:
            with owning(call.parts) if team.first else nullcontext():
                if team.first:
                    call.take_stock(task)
                call.follow(team.share(call.columns.commits))
                desk = Desk(call.parts, columns, call.kind, team.rank, team.world)
                found = parts_in(call.parts)
                done = work(task, desk, call.plan, call.segments(), found)
                everybody = team.gather(done)
                summary = team.share(call.finish(everybody, time.monotonic() - begun) if team.first else None)
        finally:
            if team.first:
                call.clean_up(summary is not None)
    assert summary is not None
    return summary


def _folder(path: str | Path | None) -> Path | None:
    return None if path is None else Path(os.path.abspath(path))


def _device(bundle: Bundle) -> str:
    device = getattr(getattr(bundle, "_inference", None), "device", "cpu")
    return str(getattr(device, "type", device))


def _sha256(bundle: Bundle) -> str:
    return file_sha256(
        next(path for path in (bundle.folder / BUNDLE_MANIFEST, bundle.folder / POLICY) if path.is_file())
    )
