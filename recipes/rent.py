# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "natix_hf[tensorboard] @ git+https://github.com/ORG/natix_hf@COMMIT",
#   "torch>=2.8,<2.11",
# ]
# ///
"""Run a recipe on a rented machine whose disk is lost at the end, and push the bundle to the Hub.

    hf jobs uv run --flavor a10g-large --timeout 12h --secrets HF_TOKEN rent.py --repo org/name RECIPE [KEY=VALUE ...]
    uv run rent.py --repo org/name RECIPE [KEY=VALUE ...]

Edit above where natix_hf comes from: the address of your copy with a commit, or `file:///path/to/checkout`. PyTorch
2.8 to 2.10 come with CUDA 12.8, later ones with CUDA 13: take the line out if your machine's driver knows CUDA 13.

The token is HF_TOKEN, or that of `hf auth login`. Repository, tag and token are checked before anything is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from natix_hf.cli import main as natix_hf


def command_of(arguments: Sequence[str] | None = None) -> list[str]:
    """The arguments of `natix-hf` for those of this script."""
    parser = argparse.ArgumentParser(description="Run a recipe and push the bundle.")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="the repository that the bundle goes to")
    parser.add_argument("--public", action="store_true", help="a new repository is public, not private")
    parser.add_argument("recipe", metavar="RECIPE", help="a packaged recipe, or a YAML file on the machine")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="change a key of the recipe")
    given = parser.parse_intermixed_args(arguments)
    push = ["phase6.push=true", f"phase6.repo_id={given.repo}", f"phase6.private={str(not given.public).lower()}"]
    return ["run", given.recipe, *push, *given.settings]


if __name__ == "__main__":
    natix_hf(command_of(sys.argv[1:]))
