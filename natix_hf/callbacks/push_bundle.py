"""`PushBundle`: the export phase calls it with the bundle that it has built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natix_hf.bundle.push import Published, check_push, push_bundle
from natix_hf.reporting import say


class PushBundle:
    """Publishes the bundle of a run; see `push_bundle`.

    Raises (when made): as `check_push`: what can be refused is refused before the test rows are looked at.
    """

    def __init__(self, repo_id: str, private: bool = False, tag: str | None = None) -> None:
        check_push(repo_id, tag)
        self.repo_id = repo_id
        self.private = private
        self.tag = tag

    def on_export_end(self, bundle: Path) -> dict[str, Any]:
        """Returns what the manifest of the phase tells of it."""
        done = push_bundle(bundle, self.repo_id, self.private, self.tag)
        say_published(done)
        facts = {"repo_id": done.repo_id, "commit": done.commit, "manifest_sha256": done.manifest_sha256}
        return facts | {"tag": done.tag}


def say_published(done: Published) -> None:
    """The lines that pin what was published."""
    tagged = f", tag {done.tag}" if done.tag else ""
    say(f"published {done.repo_id}, read back and verified{tagged}")
    say(f"revision  {done.commit}")
    say(f"manifest  sha256 {done.manifest_sha256}")
    pinned = f'revision="{done.commit}", expected="{done.manifest_sha256}"'
    say(f'load      natix_hf.load_bundle("{done.repo_id}", {pinned})')
