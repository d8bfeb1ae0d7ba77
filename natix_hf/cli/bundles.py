"""Commands about bundles: predict, push, pull."""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import NatixError, UsageError, VerificationError
from natix_hf.labels import ABSTAIN, LabelNames
from natix_hf.terminal import say

if TYPE_CHECKING:
    from natix_hf.bundle.load import Answer


@app.command(cls=Command)
def predict(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle folder, a run folder or a Hub repository.")
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, or - to read names from standard input.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    revision: Annotated[str | None, typer.Option(help="Take this branch, tag or commit of the repository.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Put this many images in one forward pass.")] = 32,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Answer in bfloat16 and report where float32 would answer differently.")
    ] = False,
) -> None:
    """Answer image files: yes, no (each by its name in the bundle) or abstain.

    An image that cannot be read is reported in its place. The exit code is then 1.
    """
    from_stdin = images == [Path("-")]
    if not from_stdin and not any(path.is_file() for path in images):
        folder = f"is a folder: name its images, such as {images[0]}/*.jpg" if images[0].is_dir() else "is no file"
        raise UsageError(f"{images[0]} {folder}")
    from natix_hf.bundle.load import Bundle, count_flips, load_bundle

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        loaded = load_bundle(bundle, revision=revision, precision="bfloat16" if bf16 else "float32")
    for warning in heard:
        typer.echo(f"warning: {warning.message}", err=True)
    named = (Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()) if from_stdin else iter(images)
    asked, paths = itertools.tee(named)  # the second is at most two batches behind
    if bf16:
        pairs = loaded.stream_beside(Bundle(loaded.folder), asked, batch_size)
    else:
        pairs = ((answer, answer) for answer in loaded.stream(asked, batch_size))
    found = count_flips(_told(paths, pairs, loaded.policy.labels, as_json))
    if bf16:
        flipped = f"bf16: float32 decides {found.decisions} of {found.images} images differently"
        typer.echo(f"{flipped}; probabilities differ by at most {found.max_difference:.4f}", err=True)
    if found.bad:
        raise NatixError(f"{found.bad} of {found.bad + found.images} images cannot be read: their lines say why")


def _told(
    paths: Iterable[Path], pairs: Iterable[tuple[Answer, Answer]], labels: LabelNames, as_json: bool
) -> Iterator[tuple[Answer, Answer]]:
    """Print each answer as it comes, with the decision of float32 where it differs, and pass the pairs on."""
    from dataclasses import asdict

    from natix_hf.bundle.stream import BadImage

    width = max(map(len, (labels.no, labels.yes, ABSTAIN)))
    for path, (answer, exact) in zip(paths, pairs, strict=True):
        if isinstance(answer, BadImage) or isinstance(exact, BadImage):
            problem = answer.problem if isinstance(answer, BadImage) else ""
            say(
                json.dumps({"image": str(path), "error": problem})
                if as_json
                else f"{path}  {'error':{width}s}  {problem}"
            )
        elif as_json:
            flip = {} if answer is exact else {"float32_decision": exact.decision}
            say(json.dumps({"image": str(path)} | asdict(answer) | flip))
        else:
            flipped = "" if answer.decision == exact.decision else f"  (float32: {exact.decision})"
            by_half = answer.label == labels.name(answer.probability > 0.5)
            cut = "" if by_half else f"  (threshold {answer.threshold:.3f})"
            say(f"{path}  {answer.decision:{width}s}  P({labels.yes}) {answer.probability:.3f}{cut}{flipped}")
        yield answer, exact


@app.command(cls=Command)
def push(
    reference: Annotated[str, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle folder.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="A Hub repository. It is created if it does not exist.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private if it is created now.")
    ] = False,
    tag: Annotated[str | None, typer.Option(help="Give the commit this tag, such as v1.0.0.")] = None,
) -> None:
    """Publish a bundle on the Hub in one verified commit.

    If the bundle lies in a run, the whole run is verified first.
    """
    from natix_hf.bundle.load import find_local_bundle
    from natix_hf.bundle.names import run_of_bundle
    from natix_hf.bundle.push import push_bundle, say_published
    from natix_hf.runs.verify import find_problems

    bundle = find_local_bundle(reference)
    for problem in find_problems(str(run_of_bundle(bundle) or reference)):
        raise VerificationError(f"{problem}; nothing was published")
    say_published(push_bundle(bundle, repo_id, private, tag))


@app.command(cls=Command)
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="A Hub repository.")],
    revision: Annotated[
        str | None, typer.Option(help="Take this branch, tag or commit. Default: the main branch.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Create this folder. Default: the repository's name in the current folder.")
    ] = None,
) -> None:
    """Download a bundle and verify every file."""
    from natix_hf.bundle.fetch import pull_bundle
    from natix_hf.bundle.names import BUNDLE_MANIFEST
    from natix_hf.provenance.files import file_sha256

    folder, commit = pull_bundle(repo_id, revision, to)
    say(f"bundle    {folder}, every file verified")
    say(f"revision  {commit}")
    say(f"manifest  sha256 {file_sha256(folder / BUNDLE_MANIFEST)}")
