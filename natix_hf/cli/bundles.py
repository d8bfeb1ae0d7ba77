"""Commands about bundles: push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import VerificationError
from natix_hf.terminal import say


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
    space: Annotated[
        bool, typer.Option("--space", help="Publish a Space too, a page that answers pictures with this bundle.")
    ] = False,
    space_name: Annotated[
        str | None, typer.Option(metavar="ORG/SPACE", help="Name the Space so. Default: as the bundle's repository.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Publish the handler of an Inference Endpoint too, in this repository."),
    ] = None,
) -> None:
    """Publish a bundle on the Hub in one verified commit.

    If the bundle lies in a run, the whole run is verified first.
    """
    from natix_hf.bundle.load import find_local_bundle
    from natix_hf.bundle.names import run_of_bundle
    from natix_hf.bundle.push import check_push, push_bundle, say_published
    from natix_hf.bundle.space import Kind, check_space, push_space
    from natix_hf.runs.verify import find_problems

    bundle = find_local_bundle(reference)
    for problem in find_problems(str(run_of_bundle(bundle) or reference)):
        raise VerificationError(f"{problem}; nothing was published")
    beside: dict[Kind, str] = {"space": space_name or repo_id} if space or space_name else {}
    beside |= {"endpoint": endpoint} if endpoint else {}
    if beside:
        check_push(repo_id, tag)
    for kind, name in beside.items():
        check_space(kind, name, repo_id)
    done = push_bundle(bundle, repo_id, private, tag)
    say_published(done)
    for kind, name in beside.items():
        say(f"{kind:9s} {name} at {push_space(kind, done, name, private)}, read back")


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
