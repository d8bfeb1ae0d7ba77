"""Commands that bring a bundle to where it answers: deploy streetvision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import NatixError, UsageError, cut
from natix_hf.terminal import LABEL, say, tell

if TYPE_CHECKING:
    from natix_hf.subnet.checkout import Edit
    from natix_hf.subnet.checks import Check

deploy = typer.Typer(
    help="Bring a bundle to where it answers.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
app.add_typer(deploy, name="deploy")
_WORDS = {"ok": "ok", "wrong": "wrong", "warning": "warning", "unknown": "unknown"}
_HANG = 2 * LABEL + 7


@deploy.callback()
def _group() -> None:
    """Bring a bundle to where it answers."""


@deploy.command(cls=Command)
def streetvision(
    reference: Annotated[
        str,
        typer.Argument(metavar="BUNDLE_OR_REPO", help="A Hub repository; or a bundle or run folder, to look first."),
    ],
    miner_repo: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Check this checkout of the official miner and show the edit it needs."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Ask a stock pipeline about these pictures and compare the decisions."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Make the edit in the checkout. The old file is kept beside it.")
    ] = False,
    hotkey: Annotated[str | None, typer.Option(help="The hotkey that model_card.json must name.")] = None,
    revision: Annotated[str | None, typer.Option(help="Take this branch, tag or commit of the repository.")] = None,
) -> None:
    """Check that the official miner of the NATIX StreetVision subnet answers with a bundle.

    One line for each check, then the call that registers. Exit code 1 if one is wrong or could not be made. Nothing of
    the checkout is run, and nothing in it is changed without --write.
    """
    from natix_hf.bundle.load import is_from_hub, load_bundle
    from natix_hf.bundle.streetvision import bundle_checks, one_answer, pictures_in, rehearse, repository_check
    from natix_hf.subnet.checkout import checkout_checks
    from natix_hf.subnet.hotkey import is_hotkey
    from natix_hf.subnet.official import register_call

    if write and miner_repo is None:
        raise UsageError("--write makes the edit in a checkout: name it with --miner-repo")
    if hotkey is not None and not is_hotkey(hotkey):
        raise UsageError(f"--hotkey {cut(hotkey)} is no SS58 address with its checksum: a letter is wrong")
    pictures = pictures_in(images) if images is not None else None
    on_hub = is_from_hub(reference)
    repo_id = reference if on_hub else "ORG/NAME"
    bundle = load_bundle(reference, revision, device="cpu", backend="torch")
    found = [
        repository_check(reference, revision, bundle.folder),
        *bundle_checks(bundle.folder, bundle.policy, hotkey),
    ]
    if all(check.state == "ok" for check in found if check.what in ("architecture", "labels", "files")):
        asked = rehearse(bundle, pictures) if pictures is not None else one_answer(bundle)
        found += asked.checks(pictures is not None)
    else:
        tell("the stock pipeline is not asked: the miner could not load the model")
    _say(found)
    edit, arguments = None, None
    fit = all(check.state in ("ok", "warning") for check in found)
    if miner_repo is not None:
        of_checkout, edit, arguments = checkout_checks(miner_repo, repo_id)
        if edit is not None and write and edit.is_needed:
            of_checkout = _written(edit, of_checkout, fit and on_hub)
        _say(of_checkout)
        found += of_checkout
        if edit is not None and edit.is_needed:
            say("\n".join(edit.diff()))
    say(f"register {register_call(repo_id, arguments or 6)}")
    if arguments is None:
        tell("         older versions of register.sh take five arguments: leave the address out if it says so")
    wrong = sum(check.state in ("wrong", "unknown") for check in found)
    if wrong:
        raise NatixError(f"{wrong} of {len(found)} checks are not ok: their lines say what to do")
    say(f"{len(found)} checks, none wrong. Restart the miner: it reads model and settings when it starts")


def _say(checks: list[Check]) -> None:
    for check in checks:
        say(f"{_WORDS[check.state]:{LABEL}s}{check.what:16s} {check.line}", hang=_HANG)


def _written(edit: Edit, checks: list[Check], fit: bool) -> list[Check]:
    """Make the edit, if the model is fit to be served, and say so in place of the check that asked for it."""
    from natix_hf.subnet.checks import Check
    from natix_hf.subnet.official import REPOSITORY_KEY

    name = edit.path.name
    others = [check for check in checks if check.what != name]
    if not fit:
        return [
            *checks,
            Check(name, "wrong", "nothing was written, because the model is not ready: see the lines above"),
        ]
    kept = edit.write()
    kept_as = kept.name if kept is not None else ""
    return [Check(name, "ok", f"{REPOSITORY_KEY} was changed; the old file is {kept_as} beside it"), *others]
