"""A bundle's files from the Hub: what a bundle may not hold is not downloaded, and a copy here is checked whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from natix_hf.bundle.verify import BUNDLE_MANIFEST, bundle_problems, is_allowed, is_of_the_hub, require_intact
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.provenance.files import atomic_folder, check_files, list_files, read_json
from natix_hf.provenance.hub import hub_errors

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
    """`require_intact` of a folder that `fetch_bundle` gave; what is damaged leaves the cache, so that the next
    attempt downloads it anew.

    Raises:
        VerificationError: with the first problem.
    """
    problems = bundle_problems(snapshot)
    if problems:
        _forget(snapshot)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        first = problems[0].replace(f"{snapshot}/", "")
        again = "run the same again to download it anew; if it stays so, it was published like that"
        raise VerificationError(f"{repo_id} at {snapshot.name[:12]}: {first}{more}; {again}")
    if expected is not None:
        require_intact(snapshot, expected)


def _forget(snapshot: Path) -> None:
    """Removes a snapshot, and of its blobs those that are not what the manifest says: others may share the rest."""
    try:
        named = read_json(snapshot / BUNDLE_MANIFEST)["files"]
    except (VerificationError, KeyError, TypeError):
        named = {}
    blobs = (snapshot.parent.parent / "blobs").resolve()
    for path in snapshot.rglob("*"):
        name = path.relative_to(snapshot).as_posix()
        facts = named.get(name) if isinstance(named, dict) else None
        described = isinstance(facts, dict) and {"sha256", "size"} <= set(facts)
        intact = described and not check_files(snapshot, {name: dict(facts or {})})
        intact = intact or is_of_the_hub(name) or (name == BUNDLE_MANIFEST and bool(named))
        if path.is_symlink() and path.resolve().parent == blobs and not intact:
            path.resolve().unlink(missing_ok=True)
    shutil.rmtree(snapshot)


def pull_bundle(repo_id: str, revision: str | None = None, to: Path | None = None) -> tuple[Path, str]:
    """Downloads a bundle into a folder of its own, checked whole, or leaves nothing there.

    Args:
        to: the folder; it must not exist, or be empty. None: one named as the repository, here.

    Returns:
        The folder, and the commit that it is from.

    Raises: as `fetch_bundle`, and
        UsageError: there is something in the folder. VerificationError: a file is not what the manifest says.
    """
    target = to if to is not None else Path(repo_id.rsplit("/", 1)[-1])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists already: name another folder with --to")
    snapshot = fetch_bundle(repo_id, revision)
    require_intact_snapshot(snapshot, repo_id)
    with atomic_folder(target) as folder:
        for name in list_files(snapshot):
            if not is_of_the_hub(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(snapshot / name, folder / name)
    return target, snapshot.name
