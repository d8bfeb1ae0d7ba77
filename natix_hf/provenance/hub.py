"""The Hugging Face Hub: which commit an id stands for, and what its client raises as one line with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from natix_hf.errors import HubError, UsageError

Kind = Literal["model", "dataset"]
_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_repo_id(text: str) -> bool:
    """Whether `text` can be `org/name`."""
    named = re.fullmatch(rf"{_NAME}/{_NAME}", text, re.ASCII) is not None
    return named and ".." not in text and "--" not in text and len(text) <= 96 and not text.endswith(".git")


def is_tag(text: str) -> bool:
    """Whether `text` can be the name of a tag."""
    return re.fullmatch(_NAME, text, re.ASCII) is not None and ".." not in text


@contextmanager
def hub_errors(repo_id: str, doing: str, outcome: str) -> Iterator[None]:
    """What the Hub's client raises, as one line.

    Args:
        doing: for the line, as in `push to`.
        outcome: what is left of it, as in `nothing was published`.

    Raises:
        UsageError: no such repository, no right to it, or no token. HubError: the Hub or the connection failed.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    http_error: Any = HfHubHTTPError.__bases__[0]  # of the httpx that the client brings, whichever that is
    begin = f"{doing} {repo_id}"
    try:
        yield
    except LocalTokenNotFoundError:
        raise UsageError(f"{begin}: there is no token: {LOG_IN}") from None
    except OfflineModeIsEnabled:
        raise HubError(f"{begin}: HF_HUB_OFFLINE is set; {outcome}: unset it") from None
    except HFValidationError as error:
        raise UsageError(f"{begin}: {_first_line(error)}") from None
    except (http_error, OSError, RuntimeError, LookupError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # a file of this machine
        answer = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
        if answer is not None:
            raise _told(answer, begin, outcome) from None
        broken = next((cause for cause in _causes(error) if isinstance(cause, http_error)), None)
        what = "the connection failed" if broken or isinstance(error, OSError) else "the Hub's answer makes no sense"
        raise HubError(f"{begin}: {what} ({_first_line(broken or error)}); {outcome}: run the same again") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The client wraps what happened in other errors: an upload's in a RuntimeError, a download's in others."""
    while error is not None:
        yield error
        error = error.__cause__


def _told(error: Any, begin: str, outcome: str) -> UsageError | HubError:
    status = error.response.status_code
    said = _first_line(error.server_message or error)
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
        return HubError(f"{begin}: the Hub fails at the moment ({status}); {again} later")
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
    return {"repo": repo_id, "commit": info.sha, "license": stated}


def _cached_commit(repo_id: str, kind: Kind, revision: str | None) -> str | None:
    """What a branch or tag stood for when the Hub was reached last."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=kind)
    reference = folder / "refs" / (revision or "main")
    return reference.read_text(encoding="ascii").strip() if reference.is_file() else None


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
