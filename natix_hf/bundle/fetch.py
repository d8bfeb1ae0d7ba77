"""A bundle's files from the Hub: what a bundle may not hold is not downloaded, and a copy here is checked whole."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from natix_hf.bundle.contents import BUNDLE_MANIFEST, bundle_problems, is_allowed, is_of_the_hub
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.provenance.files import atomic_folder, file_sha256, list_files
from natix_hf.provenance.hub import hub_errors, require_repo_id

_OUTCOME = "nothing was loaded"


def fetch_bundle(repo_id: str, revision: str | None = None, cache: Path | None = None) -> Path:
    """The folder of a bundle's snapshot in the Hub's cache, its files not yet checked. Where the Hub cannot be
    reached, what the cache has of that revision.

    Args:
        cache: another cache folder than the Hub's own.

    Raises:
        UsageError: there is no such repository or revision, or no right to it. HubError: the Hub or the connection
            failed, and the cache has no such snapshot. VerificationError: it holds a file that a bundle may not hold.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        with hub_errors(repo_id, "download", _OUTCOME):
            info = HfApi().model_info(repo_id, revision=revision)
    except HubError:
        cached = _cached(repo_id, revision, cache)
        if cached is None:
            raise
        return cached
    names = [file.rfilename for file in info.siblings or []]
    if BUNDLE_MANIFEST not in names:
        raise UsageError(f"{repo_id} is not a bundle: it has no {BUNDLE_MANIFEST}")
    for name in names:
        if not is_allowed(name) and name != BUNDLE_MANIFEST and not is_of_the_hub(name):
            raise VerificationError(f"{repo_id} holds {name}, which a bundle may not hold: nothing was downloaded")
    with hub_errors(repo_id, "download", _OUTCOME):
        # By the revision's own name, so that the cache knows what it stood for when the Hub cannot be reached.
        snapshot = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache, allow_patterns=names))
    if snapshot.name != info.sha:
        raise HubError(f"download {repo_id}: it moved meanwhile; {_OUTCOME}: run the same again")
    return snapshot


def _cached(repo_id: str, revision: str | None, cache: Path | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, cache_dir=cache, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def require_intact_snapshot(snapshot: Path, repo_id: str, expected: str | None = None) -> None:
    """`require_intact` of a folder that `fetch_bundle` gave; what the way damaged leaves the cache, so that the next
    attempt downloads it anew.

    Raises:
        VerificationError: with the first problem.
    """
    problems = snapshot_problems(snapshot, expected)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        first = problems[0].replace(f"{snapshot}/", "")
        again = "run the same again to download it anew; if it stays so, it was published like that"
        raise VerificationError(f"{repo_id} at {snapshot.name[:12]}: {first}{more}; {again}")


def snapshot_problems(snapshot: Path, expected: str | None = None) -> list[str]:
    """`bundle_problems` of a folder that `fetch_bundle` gave; what the way damaged leaves the cache."""
    problems = bundle_problems(snapshot, expected)
    if problems:
        try:
            _forget_damage(snapshot)
        except OSError as error:  # a cache that others own
            problems[-1] += f"; {error.filename or snapshot} could not be taken out of the cache ({error.strerror})"
    return problems


def _forget_damage(snapshot: Path) -> None:
    """Takes out of the Hub's cache what is not what the Hub said: a blob has the name of its hash. Other revisions may
    share the intact ones, and a snapshot of nothing but these stays: there is no better to be had."""
    blobs, damaged = (snapshot.parent.parent / "blobs").resolve(), False
    for path in snapshot.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        blob = path.resolve()
        ours = path.is_symlink() and blob.parent == blobs
        if not (ours and blob.is_file() and _is_as_named(blob)):
            damaged = True
            if ours:
                blob.unlink(missing_ok=True)
    if damaged:
        shutil.rmtree(snapshot)


def _is_as_named(blob: Path) -> bool:
    """Whether a file has the hash that the Hub names it by: sha256 in LFS, git's own outside."""
    if len(blob.name) == 64:
        return file_sha256(blob) == blob.name
    git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        return hashlib.file_digest(file, lambda: git).hexdigest() == blob.name


def pull_bundle(repo_id: str, revision: str | None = None, to: Path | None = None) -> tuple[Path, str]:
    """Downloads a bundle into a folder of its own, checked whole, or leaves nothing there.

    Args:
        to: the folder; it must not exist, or be empty. None: one named as the repository, here.

    Returns:
        The folder, and the commit that it is from.

    Raises: as `fetch_bundle`, and
        UsageError: no name of a repository, or there is something in the folder, or it is the one that this process
            is in. VerificationError: a file is not what the manifest says.
    """
    require_repo_id(repo_id)
    target = to if to is not None else Path(repo_id.rsplit("/", 1)[-1])
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken or target.resolve() == Path.cwd():  # it takes its name when it is whole: not under anybody's feet
        raise UsageError(f"{target} exists already: name another folder with --to")
    snapshot = fetch_bundle(repo_id, revision)
    require_intact_snapshot(snapshot, repo_id)
    with atomic_folder(target) as folder:
        for name in list_files(snapshot):
            if not is_of_the_hub(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(snapshot / name, folder / name)
    return target, snapshot.name
