"""The Hugging Face Hub: resolve ids to commits, and turn the client's exceptions into errors of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from natix_hf.disk import OF_A_DISK
from natix_hf.errors import HubError, UsageError, cut, first_line

Kind = Literal["model", "dataset"]
_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_repo_id(text: str) -> bool:
    """Check that `text` is a valid repository id, `org/name`."""
    named = re.fullmatch(rf"{_NAME}/{_NAME}", text, re.ASCII) is not None
    return named and ".." not in text and "--" not in text and len(text) <= 96 and not text.endswith(".git")


def require_repo_id(text: str) -> None:
    """Raise `UsageError` unless `text` is a valid repository id, `org/name`."""
    if not is_repo_id(text):
        raise UsageError(f"{cut(text)} cannot be a repository: name it as org/name")


def is_tag(text: str) -> bool:
    """Check that `text` is a valid tag name."""
    return re.fullmatch(_NAME, text, re.ASCII) is not None and ".." not in text


@contextmanager
def hub_errors(repo_id: str, doing: str, outcome: str, in_doubt: str | None = None) -> Iterator[None]:
    """Turn the exceptions of the Hub's client into errors of one line.

    Args:
        repo_id: The repository, for the message.
        doing: The action, for the message, such as `push to`.
        outcome: The state after a failure, such as `nothing was published`.
        in_doubt: The state if the Hub may have acted before its answer was lost. None: the same as `outcome`.

    Raises:
        UsageError: If there is no such repository, no right to it, or no token.
        HubError: If the Hub or the connection failed.
        OSError: If a local file or disk failed, not the Hub.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    http_error: Any = HfHubHTTPError.__bases__[0]  # the error class of the HTTP library that the client uses
    begin, doubt = f"{doing} {repo_id}", in_doubt or outcome
    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):  # the client's own error would print it
        raise UsageError(f"{begin}: the token contains an invalid character, so it was copied wrongly: {LOG_IN}")
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
        what = "the connection failed" if broken or isinstance(error, OSError) else "the Hub sent an invalid answer"
        raise HubError(f"{begin}: {what} ({first_line(broken or error)}); {doubt}: run the same again") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes. The client wraps the original error, an upload's in a RuntimeError."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_local(error: BaseException) -> bool:
    """Check that a local file or the local disk caused the error."""
    named = isinstance(error, OSError) and error.errno is not None and error.filename is not None
    return named or (isinstance(error, OSError) and error.errno in OF_A_DISK)


def _told(error: Any, begin: str, outcome: str, doubt: str) -> UsageError | HubError:
    status = error.response.status_code
    said = first_line(error.server_message or error)
    if status == 401:
        refused = "the token is not accepted, or there is no token or no such repository"
        return UsageError(f"{begin}: {refused}; {outcome}: {LOG_IN}")
    if status == 403:
        return UsageError(f"{begin}: this token has no right to do that ({said}); {outcome}: use one that has it")
    if status == 404:
        return UsageError(
            f"{begin}: there is no such repository or revision, or this token may not read it; {outcome}"
        )
    again = f"{outcome}: run the same again"
    if status == 409:
        return HubError(f"{begin}: it already exists, or somebody else is changing it ({said}); {again}")
    if status == 412:
        return HubError(f"{begin}: the branch has moved meanwhile, somebody else committed to it; {again}")
    if status == 429:
        return HubError(
            f"{begin}: the Hub got too many requests (429); {outcome}: wait some minutes, then run it again"
        )
    if status >= 500:
        return HubError(f"{begin}: the Hub has an error of its own ({status}); {doubt}: run the same again later")
    return HubError(f"{begin}: the Hub refused the request ({status}: {said}); {outcome}")


def hub_origin(repo_id: str, kind: Kind, revision: str | None = None) -> dict[str, Any]:
    """Look up the commit and the licence of a repository.

    Args:
        repo_id: `org/name`.
        kind: `model` or `dataset`.
        revision: A branch, tag or commit. None: the main branch.

    Returns:
        `{"repo", "commit", "license"}`. `commit` is the current commit of `revision`; `license` is what the card
        states, or None. If the Hub cannot be reached, `license` is None and `commit` comes from the cache, or is None.

    Raises:
        UsageError: If the Hub was reached, but there is no such repository or no right to it.
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
    """The commit of a branch or tag when the Hub was last reached."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=kind)
    reference = folder / "refs" / (revision or "main")
    return reference.read_text(encoding="ascii").strip() if reference.is_file() else None
