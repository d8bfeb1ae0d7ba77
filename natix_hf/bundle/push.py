"""Publish a bundle: stage the allowed files, reload them, make one commit, read it back and check every byte."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf.bundle.contents import is_of_the_hub, require_intact
from natix_hf.bundle.fetch import fetch_bundle, require_intact_snapshot
from natix_hf.bundle.load import Bundle
from natix_hf.bundle.manifest import write_bundle_manifest
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.errors import HubError, UsageError, VerificationError, cut
from natix_hf.provenance.files import file_sha256, list_files, read_json, write_text
from natix_hf.provenance.hub import LOG_IN, hub_errors, is_tag, require_repo_id
from natix_hf.terminal import say

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_OUTCOME = "nothing was published"
# The name of the bundle in a card's examples, until a push replaces it with the repository's.
REPO_PLACEHOLDER = "PATH_OR_REPO_ID"
_EXAMPLES = re.compile(r'((?:natix_hf\.load_bundle\(|pipeline\("image-classification", model=)")[^"]*(?=")')


@dataclass(frozen=True)
class Published:
    """A published bundle. `commit` pins its files on the Hub; `manifest_sha256` pins their content anywhere."""

    repo_id: str
    commit: str
    manifest_sha256: str
    tag: str | None


def check_push(repo_id: str, tag: str | None = None) -> None:
    """Check before any work that a push can succeed: the names are valid and the Hub accepts the token.

    Raises:
        UsageError: if a name is invalid, or if the token is missing or not accepted.
        HubError: if the Hub or the connection fails.
    """
    from huggingface_hub import HfApi, get_token

    require_repo_id(repo_id)
    if tag is not None and not is_tag(tag):
        raise UsageError(f"{cut(tag)} cannot be a tag: use letters, digits, dots and dashes")
    if get_token() is None:
        raise UsageError(f"push to {repo_id}: there is no token: {LOG_IN}")
    with hub_errors(repo_id, "push to", _OUTCOME):
        HfApi().whoami()


def push_bundle(bundle: Path, repo_id: str, private: bool = False, tag: str | None = None) -> Published:
    """Publish a bundle as one commit on the main branch of a repository. A missing repository is created.

    Afterwards the repository holds the bundle's files and no others. Repeating a push makes no second commit.

    Args:
        bundle: An intact bundle folder.
        repo_id: The repository as `org/name`. If it exists, it must be empty or hold a bundle.
        private: Make the repository private if it is created now.
        tag: A tag for the commit.

    Raises:
        UsageError: if the token is missing or may not write, if the tag is taken, or if the repository holds something
            else.
        HubError: if the Hub or the connection fails, or if the repository moved meanwhile. The line says what is
            published.
        VerificationError: if the bundle is not intact, or if the Hub does not return what was sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        staged = _stage(bundle, Path(scratch) / "bundle", repo_id)
        check_push(repo_id, tag)
        manifest_sha256 = file_sha256(staged / BUNDLE_MANIFEST)
        names = list_files(staged)
        with hub_errors(repo_id, "push to", _OUTCOME):
            api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: the organization's default
            head = api.model_info(repo_id)
            there = [file.rfilename for file in head.siblings or [] if not is_of_the_hub(file.rfilename)]
            _require_ours(repo_id, there, private and not head.private)
            tagged = _require_free(api, repo_id, tag, str(head.sha), manifest_sha256)
            operations: list[Any] = [CommitOperationAdd(name, str(staged / name)) for name in names]
            api.preupload_lfs_files(repo_id, operations, free_memory=False)
            operations += [CommitOperationDelete(name) for name in there if name not in names]
            message = f"natix_hf bundle {manifest_sha256[:12]}"
        with hub_errors(repo_id, "push to", _OUTCOME, in_doubt="whether it was published is not known"):
            commit = str(api.create_commit(repo_id, operations, commit_message=message, parent_commit=head.sha).oid)
        if tag is not None and not tagged:
            done = f"commit {commit} is published"
            with hub_errors(repo_id, f"tag {tag} on", f"{done} without it", in_doubt=f"{done}, perhaps without it"):
                api.create_tag(repo_id, tag=tag, revision=commit)
        _read_back(repo_id, commit, manifest_sha256, Path(scratch) / "cache")
    return Published(repo_id, commit, manifest_sha256, tag)


def say_published(done: Published) -> None:
    """Print the lines that pin a published bundle."""
    tagged = f", tag {done.tag}" if done.tag else ""
    say(f"published {done.repo_id}, read back and verified{tagged}")
    say(f"revision  {done.commit}")
    say(f"manifest  sha256 {done.manifest_sha256}")
    pinned = f'revision="{done.commit}", expected="{done.manifest_sha256}"'
    say(f'load      natix_hf.load_bundle("{done.repo_id}", {pinned})')


def name_repository(card: str, repo_id: str) -> str:
    """Put the name of a repository into the two examples of a card, and replace an older name."""
    return _EXAMPLES.sub(lambda found: found[1] + repo_id, card)


def _stage(bundle: Path, staged: Path, repo_id: str) -> Path:
    """Copy the files in the manifest, put the repository's name on the card, and check that the copy loads."""
    require_intact(bundle)
    manifest = read_json(bundle / BUNDLE_MANIFEST)
    for name in [*manifest["files"], BUNDLE_MANIFEST]:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, staged / name)
    require_intact(staged)  # checks the copy, because the bundle may have changed meanwhile
    card = staged / "README.md"
    write_text(card, name_repository(card.read_text(encoding="utf-8"), repo_id))
    write_bundle_manifest(staged, manifest["lineage"])
    Bundle(staged, backend="torch")  # the safetensors, which everybody can load
    return staged


def _require_ours(repo_id: str, there: list[str], would_be_public: bool) -> None:
    """Refuse a repository that holds something else: a push would remove its files."""
    if BUNDLE_MANIFEST not in there and set(there) - {"README.md"}:
        other = min(set(there) - {"README.md"})
        raise UsageError(f"push to {repo_id}: it holds {other} and is no bundle's repository: name a new one")
    if would_be_public:
        raise UsageError(
            f"push to {repo_id}: it is public already: leave out --private, or make it private on the Hub first"
        )


def _require_free(api: HfApi, repo_id: str, tag: str | None, head: str, manifest_sha256: str) -> bool:
    """True if this very bundle already has the tag.

    Raises:
        UsageError: if another commit has the tag.
    """
    from huggingface_hub import hf_hub_download

    names = {reference.name: reference.target_commit for reference in api.list_repo_refs(repo_id).tags} if tag else {}
    if tag is None or tag not in names:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        if names[tag] == head:
            manifest = hf_hub_download(repo_id, BUNDLE_MANIFEST, revision=head, cache_dir=scratch)
            if file_sha256(Path(manifest)) == manifest_sha256:
                return True
    raise UsageError(f"push to {repo_id}: the tag {tag} is taken by commit {names[tag][:12]}: name another")


def _read_back(repo_id: str, commit: str, manifest_sha256: str, cache: Path) -> None:
    """Download the published bundle without any cache and check it, as any user would."""
    told = f"commit {commit} of {repo_id} is published"
    try:
        require_intact_snapshot(fetch_bundle(repo_id, commit, cache), repo_id, manifest_sha256)
    except VerificationError as error:
        raise VerificationError(f"{told}, but what the Hub gives back is not what was sent ({error})") from None
    except (HubError, UsageError, OSError) as error:
        raise HubError(f"{told}, but was not read back ({error})") from None
