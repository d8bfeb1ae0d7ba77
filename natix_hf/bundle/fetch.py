"""Bundles from the Hub: only the files that a bundle may hold are downloaded, and every one is checked."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from natix_hf.bundle.asked import check_revision
from natix_hf.bundle.contents import bundle_problems, is_of_the_hub, most_bytes
from natix_hf.bundle.manifest import is_allowed
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.provenance.files import atomic_folder, file_sha256, list_files
from natix_hf.provenance.hub import hub_errors, require_repo_id

_OUTCOME = "nothing was loaded"


def fetch_bundle(repo_id: str, revision: str | None = None, cache: Path | None = None) -> Path:
    """Download a bundle into the Hub's cache and return the folder of the snapshot. The files are not checked yet.

    If the Hub cannot be reached, the snapshot of that revision in the cache is used.

    Args:
        cache: A cache folder to use in place of the Hub's own.

    Raises:
        UsageError: if the repository or revision does not exist, if the token may not read it, or if it is no bundle.
        HubError: if the Hub or the connection fails and the cache has no such snapshot.
        VerificationError: if the repository holds a file that a bundle may not hold, or a larger one.
    """
    from huggingface_hub import HfApi, snapshot_download

    check_revision(revision)
    try:
        with hub_errors(repo_id, "download", _OUTCOME):
            info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
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
    sizes = {file.rfilename: file.size for file in info.siblings or [] if is_allowed(file.rfilename)}
    for name, size in sizes.items():
        if size is not None and size > most_bytes(name):
            told = f"{name} of {size:,} bytes, and such a file has at most {most_bytes(name):,}"
            raise VerificationError(f"{repo_id} holds {told}: nothing was downloaded")
    with hub_errors(repo_id, "download", _OUTCOME):
        # By the name of the revision, so that the cache can resolve it later without the Hub.
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


def require_intact_snapshot(
    snapshot: Path, repo_id: str, expected: str | None = None, runs_weights: bool = True
) -> None:
    """Check the folder that `fetch_bundle` returned, and remove damaged files from the cache.

    The next attempt then downloads them again.

    Raises:
        VerificationError: with the first problem, if there is one.
    """
    problems = snapshot_problems(snapshot, expected, runs_weights)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        first = problems[0].replace(f"{snapshot}/", "")
        again = "run the same again to download it anew; if nothing changes, it was published like that"
        raise VerificationError(f"{repo_id} at {snapshot.name[:12]}: {first}{more}; {again}")


def snapshot_problems(snapshot: Path, expected: str | None = None, runs_weights: bool = True) -> list[str]:
    """The problems of the folder that `fetch_bundle` returned. A file damaged in transit is removed from the cache."""
    problems = bundle_problems(snapshot, expected, runs_weights)
    if problems:
        try:
            _forget_damage(snapshot)
        except OSError as error:  # the cache belongs to somebody else
            problems[-1] += f"; {error.filename or snapshot} could not be removed from the cache ({error.strerror})"
    return problems


def _forget_damage(snapshot: Path) -> None:
    """Remove blobs from the Hub's cache that do not match the hash in their name, and the snapshot that used them.

    Intact blobs stay, because other revisions may share them. A snapshot of intact blobs stays too: a new download
    would be the same.
    """
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
    """True if a blob matches the hash in its name: sha256 for LFS files, git's own hash for others."""
    if len(blob.name) == 64:
        return file_sha256(blob) == blob.name
    git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        return hashlib.file_digest(file, lambda: git).hexdigest() == blob.name


def pull_bundle(repo_id: str, revision: str | None = None, to: Path | None = None) -> tuple[Path, str]:
    """Download a bundle into a folder of its own and check every file. If that fails, nothing is left there.

    Args:
        to: The folder, which must be new or empty; None makes one with the repository's name in the current folder.

    Returns:
        The folder, and the commit of the files.

    Raises:
        UsageError: as in `fetch_bundle`, and if `repo_id` is no name of a repository, if the folder is not empty, or
            if it is the current folder.
        HubError: as in `fetch_bundle`.
        VerificationError: as in `fetch_bundle`, and if a file does not match the manifest.
    """
    require_repo_id(repo_id)
    target = to if to is not None else Path(repo_id.rsplit("/", 1)[-1])
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken or target.resolve() == Path.cwd():  # the finished folder replaces the old one, so it must not be in use
        raise UsageError(f"{target} already exists: name another folder with --to")
    snapshot = fetch_bundle(repo_id, revision)
    require_intact_snapshot(snapshot, repo_id)
    with atomic_folder(target) as folder:
        for name in list_files(snapshot):
            if not is_of_the_hub(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(snapshot / name, folder / name)
    return target, snapshot.name
