"""The application: options of every command, and the exit codes. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import natix_hf
from natix_hf.terminal import Verbosity, errors_in_one_line, robust_streams, say, set_verbosity

# The order in which --help lists the commands.
_ORDER = ("run", "recipes", "keys", "predict", "verify", "push", "pull", "report", "reward", "plan", "doctor")


class _Group(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)


class Command(TyperCommand):
    """A command whose usage line has no braces around its arguments."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


app = typer.Typer(
    cls=_Group,
    help="From images and a pretrained ViT to a deployable, calibrated yes/no classifier.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Options of every command; they may stand anywhere on the line.
_DEBUG, _QUIET, _VERBOSE = "--debug", "--quiet", "--verbose"
_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


def _show_version(asked: bool) -> None:
    if asked:
        say(f"natix-hf {natix_hf.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option(_QUIET, help="Print results and errors only.")] = False,
    verbose: Annotated[bool, typer.Option(_VERBOSE, help="Print details too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """From images and a pretrained ViT to a deployable, calibrated yes/no classifier."""


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Exit code 0: done; 1: a check or a run failed; 2: bad usage or input; 130: interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    if _QUIET in given or _VERBOSE in given:
        set_verbosity(Verbosity.QUIET if _QUIET in given else Verbosity.VERBOSE)
    robust_streams()
    try:
        with errors_in_one_line(_DEBUG in given):
            kept = [argument for argument in given if argument not in (_DEBUG, _QUIET, _VERBOSE)]
            return app(args=kept, prog_name="natix-hf")
    except KeyboardInterrupt:
        sys.stderr.write("natix-hf: interrupted\n")
        raise SystemExit(_INTERRUPTED) from None
