"""The command predict: answers to pictures, printed as they come or kept in a table."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from natix_hf import interrupt
from natix_hf.cli.app import Command, app
from natix_hf.errors import NatixError, UsageError
from natix_hf.labels import ABSTAIN
from natix_hf.terminal import Verbosity, minutes, say, tell, verbosity

if TYPE_CHECKING:
    from natix_hf.bulk.rows import Item
    from natix_hf.bulk.table import Summary
    from natix_hf.bulk.work import Done, Task
    from natix_hf.bundle.load import Answer, Bundle


@app.command(cls=Command)
def predict(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle folder, a run folder or a Hub repository.")
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images, folders, quoted patterns such as 'dir/**/*.jpg', .txt lists of names (- for standard "
            "input), parquet files, archives, saved datasets, or Hub datasets as org/name.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write a table: .csv, .jsonl or .parquet. The same command continues an interrupted one."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Keep these decisions: abstain, yes, no, or the names that the bundle gives them."),
    ] = None,
    copy_to: Annotated[
        Path | None, typer.Option(help="Copy the pictures into a folder of this folder for each decision.")
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Write a heatmap of each answer into this folder: what moved the answer.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    revision: Annotated[str | None, typer.Option(help="Take this branch, tag or commit of the repository.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Put this many images in one forward pass.")] = 32,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Answer in bfloat16 and report where float32 would answer differently.")
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(help="What runs the model: torch, compile, onnx, openvino, or auto: the fastest exact one."),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="The column of pictures in tables. Default: image, or the only one.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of a dataset. Default: all.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration of a dataset on the Hub.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an interrupted command has answered, and its table.")
    ] = False,
) -> None:
    """Answer images: yes, no (each by its name in the bundle) or abstain.

    An image that cannot be read is reported in its place. The exit code is then 1.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if out is None and world > 1:
        raise UsageError(f"{world} processes need --out FILE: they divide the pictures of one table")
    if backend == "auto" and world > 1:
        raise UsageError("--backend auto measures in each process by itself: name one, or leave it out")
    if out is None and restart:
        raise UsageError("--restart needs --out FILE: without a table nothing is continued")
    if out is not None and as_json:
        raise UsageError("--json prints answers, and --out keeps them: name the table .jsonl, and leave out --json")
    if not any(map(_may_be, sources)):
        raise UsageError(f"{sources[0]} is no file, folder, pattern or dataset (seen from {Path.cwd()})")
    from natix_hf.bulk.rows import Columns

    if out is not None:
        _into_table(
            bundle, revision, bf16, backend, sources, out, batch_size=batch_size, only=only or (), copy_to=copy_to,
            explain=explain, image_column=image_column, split=split, config=config, restart=restart,
        )  # fmt: skip
        return
    loaded, exact = _loaded(bundle, revision, bf16, backend)
    task = _task(loaded, exact, sources, batch_size, only or [], copy_to, explain)
    _onto_terminal(task, _live(sources, Columns(image_column, split, config)), as_json)


def _may_be(argument: str) -> bool:
    """Whether an argument names something, or may on the Hub."""
    import glob

    from natix_hf.provenance.hub import is_repo_id

    found = os.path.lexists(os.path.expanduser(argument)) or argument == "-" or "://" in argument
    return found or glob.has_magic(argument) or (is_repo_id(argument) and not _is_picture(argument))


def _is_picture(argument: str) -> bool:
    from natix_hf.intake.kinds import kind_of

    return kind_of(argument) != "other"


def _loaded(reference: str, revision: str | None, bf16: bool, backend: str | None) -> tuple[Bundle, Bundle | None]:
    from natix_hf.bundle.load import Bundle, load_bundle

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        loaded = load_bundle(
            reference, revision=revision, backend=backend, precision="bfloat16" if bf16 else "float32"
        )
    for warning in heard:
        typer.echo(f"warning: {warning.message}", err=True)
    return loaded, Bundle(loaded.folder) if bf16 else None


# Into a table.


def _into_table(
    reference: str,
    revision: str | None,
    bf16: bool,
    backend: str | None,
    sources: list[str],
    out: Path,
    **settings: Any,
) -> None:
    from natix_hf.bulk.answer_all import answer_all
    from natix_hf.bulk.call import begun_backend
    from natix_hf.bulk.table import table_kind
    from natix_hf.bulk.team import processes

    table_kind(out)
    with _together(), processes() as team:  # before the bundle: each process then has a device of its own
        try:
            # what auto measures may differ from call to call, and a table has one backend
            chosen = (begun_backend(out) or backend) if backend == "auto" else backend
            loaded, exact = _loaded(reference, revision, bf16, chosen)
            summary = answer_all(loaded, sources, out, exact=exact, **settings)
        except (KeyboardInterrupt, SystemExit):
            if team.first:
                interrupt.tell_end("natix-hf: interrupted; the same command goes on")
            raise
    team.part()
    if team.first:
        _summarise(summary)
        if summary.failed:
            pictures = f"{summary.failed:,} of {summary.pictures:,} pictures cannot be answered"
            where = f"column error of {out} says why"
            if settings["only"]:  # their rows are not kept
                where = "a table without --only says why" if summary.already else "their lines above say why"
            raise NatixError(f"{pictures}: {where}")


@contextmanager
def _together() -> Iterator[None]:
    """End one of several processes as `natix-hf run` does."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from natix_hf.launch import ending_together

    with ending_together():
        yield


def _summarise(summary: Summary) -> None:
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.decisions.items()))
    rows = f"; {summary.rows:,} rows are kept" if summary.rows != summary.pictures else ""
    state = "already complete: " if summary.already else ""
    failed = f", failed {summary.failed:,}" if summary.failed else ""
    say(f"table    {summary.out}: {state}{summary.pictures:,} pictures ({counts or 'no answer'}{failed}){rows}")
    if not summary.already:
        pace = f", {summary.now / summary.seconds:,.1f} pictures/s" if summary.now else ""
        tell(f"now      {summary.now:,} pictures in {minutes(summary.seconds)}{pace}")
    for count, what in ((summary.copied, "pictures copied"), (summary.explained, "heatmaps written")):
        if count:
            tell(f"{'':8} {count:,} {what}")


# Onto the terminal.


def _task(
    loaded: Bundle, exact: Bundle | None, sources: list[str], batch_size: int, only: list[str], copy_to: Path | None,
    explain: Path | None,
) -> Task:  # fmt: skip
    from natix_hf.bulk.copies import require_apart
    from natix_hf.bulk.work import Task, wanted_decisions

    if explain is not None:
        from natix_hf.bundle.explain import require_explain

        require_explain(loaded)
    require_apart(sources, copy_to, explain, loaded.policy.labels)
    wanted = wanted_decisions(only, loaded.policy.labels)
    return Task(loaded, batch_size, exact, wanted, copy_to, explain, note=lambda line: typer.echo(line, err=True))


def _live(arguments: list[str], columns: Any) -> Iterator[Item]:
    """The pictures of every source, as they are found."""
    from natix_hf.bulk.rows import Item
    from natix_hf.bulk.sources import files_of, find_sources, left_out

    found = find_sources(arguments, columns, strict=False)
    for source in found:
        count = 0
        for file in files_of(source, False, lambda path: False, columns):
            count += 1
            yield Item(file.path, file.path, file.problem)
        for table in source.tables:
            for item in table.read(0):
                count += 1
                yield item
        if source.left_out and verbosity() > Verbosity.QUIET:
            typer.echo(f"{source.argument}: {source.said}{left_out([source])}", err=True)
        if not count and source.kind in ("folder", "glob"):
            raise UsageError(f"{source.argument}: {source.said} without pictures{left_out([source])}")


def _onto_terminal(task: Task, items: Iterable[Item], as_json: bool) -> None:
    from natix_hf.bulk.work import FAILED, Done, answered
    from natix_hf.bundle.flips import count_flips

    done = Done()
    found = count_flips(_told(task, answered(task, items), done, as_json))
    if task.exact is not None:
        flipped = f"bf16: float32 decides {found.decisions} of {found.images} images differently"
        typer.echo(f"{flipped}; probabilities differ by at most {found.max_difference:.4f}", err=True)
    if task.only is not None:
        kept = sum(count for decision, count in done.counts.items() if decision in task.only)
        typer.echo(f"{kept:,} of {done.pictures:,} images are shown, the others are left out", err=True)
    for count, what in ((done.copied, "pictures copied"), (done.explained, "heatmaps written")):
        if count:
            typer.echo(f"{count:,} {what}", err=True)
    if done.counts[FAILED]:
        raise NatixError(f"{done.counts[FAILED]} of {done.pictures} images cannot be read: their lines say why")


def _told(
    task: Task, answers: Iterable[tuple[Item, Answer, Answer]], done: Done, as_json: bool
) -> Iterator[tuple[Answer, Answer]]:
    """Print each answer as it comes, with the decision of float32 where it differs, and pass the pairs on."""
    from dataclasses import asdict

    from natix_hf.bulk.work import leave
    from natix_hf.bundle.stream import BadImage

    labels = task.bundle.policy.labels
    width = max(map(len, (labels.no, labels.yes, ABSTAIN)))
    for item, answer, exact in answers:
        name = item.name
        if not leave(task, item, answer, exact, done):
            yield answer, exact
            continue
        if isinstance(answer, BadImage) or isinstance(exact, BadImage):
            problem = answer.problem if isinstance(answer, BadImage) else ""
            say(json.dumps({"image": name, "error": problem}) if as_json else f"{name}  {'error':{width}s}  {problem}")
        elif as_json:
            flip = {} if answer is exact else {"float32_decision": exact.decision}
            say(json.dumps({"image": name} | asdict(answer) | flip))
        else:
            flipped = "" if answer.decision == exact.decision else f"  (float32: {exact.decision})"
            by_half = answer.label == labels.name(answer.probability > 0.5)
            cut = "" if by_half else f"  (threshold {answer.threshold:.3f})"
            say(f"{name}  {answer.decision:{width}s}  P({labels.yes}) {answer.probability:.3f}{cut}{flipped}")
        yield answer, exact
