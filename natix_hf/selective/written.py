"""Files that a classifier writes: is there a place for them, and what stopped them, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.bundle.policy import Policy, write_policy
from natix_hf.errors import UsageError, cut

PLOTS = ("risk_coverage.png", "reliability_before.png", "reliability_after.png")


def check_file(path: Path) -> None:
    """Refuse a path where no policy may be written.

    Raises:
        UsageError: if it is a folder, or belongs to a bundle.
    """
    with _writing(path):
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file, such as {path / 'policy.json'}")
        if (path.parent / BUNDLE_MANIFEST).is_file():
            raise UsageError(f"{path.parent} is a bundle, whose files belong together: save the policy elsewhere")


def check_folder(path: Path) -> None:
    """Refuse a path where no plots can be drawn.

    Raises:
        UsageError: if it is a file, or below one.
    """
    with _writing(path):
        for part in (path, *path.parents):
            if part.exists():
                if not part.is_dir():
                    raise UsageError(f"{part} is a file: name a folder for the plots")
                return


def write(path: Path, policy: Policy) -> None:
    """Write a policy to a file of its own.

    Raises:
        UsageError: if it cannot be written.
    """
    check_file(path)
    with _writing(path):
        write_policy(path, policy)


@contextmanager
def drawing(folder: Path) -> Iterator[None]:
    """Plots are drawn into a folder in this block.

    Raises:
        UsageError: if they cannot be written.
    """
    check_folder(folder)
    with _writing(folder):
        yield


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise UsageError(f"{cut(str(path))} cannot be the name of a file") from None
