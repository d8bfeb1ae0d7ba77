"""The Hugging Face Hub: which commit an id stands for, and what its client raises as one line with what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from natix_hf.errors import HubError, UsageError, first_line

Kind = Literal["model", "dataset"]
_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# What a disk says without naming a file; anything else without one may come from a socket.
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def is_repo_id(text: str) -> bool:
    """Whether `text` can be `org/name`."""
    named = re.fullmatch(rf"{_NAME}/{_NAME}", text, re.ASCII) is not None
    return named and ".." not in text and "--" not in text and len(text) <= 96 and not text.endswith(".git")


def require_repo_id(text: str) -> None:
    """Raises `UsageError` unless `text` can be `org/name`."""
    if not is_repo_id(text):
        raise UsageError(f"{text!r} cannot be a repository: name it as org/name")


def is_tag(text: str) -> bool:
    """Whether `text` can be the name of a tag."""
    return re.fullmatch(_NAME, text, re.ASCII) is not None and ".." not in text


@contextmanager
def hub_errors(repo_id: str, doing: str, outcome: str, in_doubt: str | None = None) -> Iterator[None]:
    """What the Hub's client raises, as one line.

    Args:
        doing: for the line, as in `push to`.
        outcome: what is left of it, as in `nothing was published`.
        in_doubt: the same where the Hub may have done it before its answer was lost. None: it changes nothing there.

    Raises:
        UsageError: no such repository, no right to it, or no token. HubError: the Hub or the connection failed.
        OSError: a file of this machine, or its disk, and not the Hub.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    http_error: Any = HfHubHTTPError.__bases__[0]  # of the httpx that the client brings, whichever that is
    begin, doubt = f"{doing} {repo_id}", in_doubt or outcome
    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):  # the client would print it
        raise UsageError(f"{begin}: the token holds a character that none has, it was copied wrongly: {LOG_IN}")
    try:
        yield
    except LocalTokenNotFoundError:
        raise UsageError(f"{begin}: there is no token: {LOG_IN}") from None
    except OfflineModeIsEnabled:
        raise HubError(f"{begin}: HF_HUB_OFFLINE is set; {outcome}: unset it") from None
    except HFValidationError as error:
        raise UsageError(f"{begin}: {first_line(error)}") from None
    except (http_error, OSError, RuntimeError, LookupError, ValueError) as error:
        local = next((cause for cause in _causes(error) if _is_local(cause)), None)
        if local is not None:
            raise local from None
        answer = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
        if answer is not None:
            raise _told(answer, begin, outcome, doubt) from None
        broken = next((cause for cause in _causes(error) if isinstance(cause, http_error)), None)
        what = "the connection failed" if broken or isinstance(error, OSError) else "the Hub's answer makes no sense"
        raise HubError(f"{begin}: {what} ({first_line(broken or error)}); {doubt}: run the same again") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The client wraps what happened in other errors: an upload's in a RuntimeError, a download's in others."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_local(error: BaseException) -> bool:
    """Whether a file or the disk of this machine is to blame."""
    named = isinstance(error, OSError) and error.errno is not None and error.filename is not None
    return named or (isinstance(error, OSError) and error.errno in _OF_A_DISK)


def _told(error: Any, begin: str, outcome: str, doubt: str) -> UsageError | HubError:
    status = error.response.status_code
    said = first_line(error.server_message or error)
    if status == 401:
        refused = "the token is not accepted, or there is none, or no such repository"
        return UsageError(f"{begin}: {refused}; {outcome}: {LOG_IN}")
    if status == 403:
        return UsageError(f"{begin}: this token has no right to do that ({said}); {outcome}: use one that has")
    if status == 404:
        return UsageError(
            f"{begin}: there is no such repository or revision, or this token must not see it; {outcome}"
        )
    again = f"{outcome}: run the same again"
    if status == 409:
        return HubError(f"{begin}: it exists already, or somebody else is at work on it ({said}); {again}")
    if status == 412:
        return HubError(f"{begin}: it moved meanwhile, somebody else has committed to it; {again}")
    if status == 429:
        return HubError(
            f"{begin}: the Hub wants fewer requests (429); {outcome}: wait some minutes, then run it again"
        )
    if status >= 500:
        return HubError(f"{begin}: the Hub fails at the moment ({status}); {doubt}: run the same again later")
    return HubError(f"{begin}: the Hub refuses ({status}: {said}); {outcome}")


def hub_origin(repo_id: str, kind: Kind, revision: str | None = None) -> dict[str, Any]:
    """`{"repo", "commit", "license"}`: the commit that `revision` (None: the main branch) stands for now, and the
    licence that its card states, None if none. Where the Hub cannot be reached the licence is None and the commit that
    of the cache, None if it is not there either.

    Raises:
        UsageError: the Hub was reached, and there is no such repository or no right to it.
    """
    from huggingface_hub import HfApi

    try:
        with hub_errors(repo_id, "look up", "nothing was loaded"):
            info: Any = HfApi().repo_info(repo_id, repo_type=kind, revision=revision)
    except HubError:
        return {"repo": repo_id, "commit": _cached_commit(repo_id, kind, revision), "license": None}
    stated = info.card_data.get("license") if info.card_data is not None else None
    licences = ", ".join(map(str, stated)) if isinstance(stated, list) else stated
    return {"repo": repo_id, "commit": info.sha, "license": licences}


def _cached_commit(repo_id: str, kind: Kind, revision: str | None) -> str | None:
    """What a branch or tag stood for when the Hub was reached last."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=kind)
    reference = folder / "refs" / (revision or "main")
    return reference.read_text(encoding="ascii").strip() if reference.is_file() else None
