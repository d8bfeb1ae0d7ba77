"""Small texts that stand where a file should be."""

from __future__ import annotations

_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = (b"/annex/objects/", b".git/annex/objects/", b"../.git/annex/objects/")
_DVC = (b"outs:", b"md5:", b"wdir:", b"deps:")  # the keys that a .dvc file begins with
_UNREADABLE = b"natix_hf could not read this member: "
HEAD = 4096  # bytes from the start of a file that are enough to tell


def lfs_pointer(head: bytes) -> bool:
    """Whether a file that starts with `head` is a Git LFS pointer (git-lfs, docs/spec.md: the version comes first)."""
    return head.startswith(_LFS)


def stand_in(head: bytes) -> str | None:
    """Say what a file is that stands in for another, and how to get that one. None if `head` is no such file.

    It knows the pointers of Git LFS, git-annex and DVC, and the note that stands for a damaged archive member.
    """
    if lfs_pointer(head):
        return "it is a Git LFS pointer, not the file: run 'git lfs pull'"
    if head.startswith(_ANNEX):
        return "it is a git-annex pointer, not the file: run 'git annex get'"
    if head.startswith(_DVC) and b"outs:" in head and b"path:" in head:
        return "it is a DVC file, not the data: run 'dvc pull'"
    if head.startswith(_UNREADABLE):
        return head.removeprefix(_UNREADABLE).decode("utf-8", "replace")
    return None


def unreadable_note(reason: str) -> bytes:
    """The bytes that stand for an archive member that cannot be read. `stand_in` gives the reason back."""
    return (_UNREADABLE + reason.encode())[:HEAD]
