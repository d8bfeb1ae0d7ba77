"""The application: global options and exit codes. This module imports nothing heavy."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import natix_hf
from natix_hf import interrupt
from natix_hf.terminal import (
    Verbosity,
    errors_in_one_line,
    hide_secrets,
    refuse_secrets,
    robust_streams,
    say,
    set_verbosity,
)

# The order in which --help lists the commands.
_ORDER = (
    "run",
    "recipes",
    "keys",
    "inspect",
    "smoke",
    "estimate",
    "predict",
    "serve",
    "verify",
    "push",
    "pull",
    "deploy",
    "report",
    "runs",
    "clean",
    "audit",
    "reward",
    "certify",
    "plan",
    "doctor",
)


class _Group(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)


class Command(TyperCommand):
    """A command whose usage line shows arguments without braces."""

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
# Options of every command. They may stand anywhere on the line.
_DEBUG, _QUIET, _VERBOSE = "--debug", "--quiet", "--verbose"
_INTERRUPTED = 130  # 128 + SIGINT, as in a shell


def _show_version(asked: bool) -> None:
    if asked:
        say(f"natix-hf {natix_hf.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the full traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option(_QUIET, help="Print only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option(_VERBOSE, help="Print more details.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """From images and a pretrained ViT to a deployable, calibrated yes/no classifier."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. Exit code 0: done; 1: a check or a run failed; 2: bad usage or input; 130, 143 and 129:
    ended by SIGINT, SIGTERM and SIGHUP."""
    given = sys.argv[1:] if arguments is None else arguments
    if _QUIET in given or _VERBOSE in given:
        set_verbosity(Verbosity.QUIET if _QUIET in given else Verbosity.VERBOSE)
    robust_streams()
    try:
        with errors_in_one_line(_DEBUG in given), interrupt.catching():
            refuse_secrets(given)
            kept = [argument for argument in given if argument not in (_DEBUG, _QUIET, _VERBOSE)]
            return app(args=kept, prog_name="natix-hf")
    except Exception:
        hide_secrets()
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) else _INTERRUPTED  # typer turns Ctrl-C into this code
        if code not in interrupt.EXIT_CODES:
            raise
        interrupt.tell_end("natix-hf: interrupted")
        raise SystemExit(code) from None
