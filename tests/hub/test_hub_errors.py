"""What the Hub's client raises, told as one line that says what to do: by status, by cause, and by who is to blame."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from natix_hf.errors import HubError, NatixError, UsageError
from natix_hf.provenance.hub import hub_errors

REPO = "lab/roadwork"


def told(error: BaseException, in_doubt: str | None = None) -> NatixError:
    with pytest.raises(NatixError) as caught, hub_errors(REPO, "push to", "nothing was published", in_doubt):
        raise error
    return caught.value


def answer(status: int) -> Any:
    """As the client raises it."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    request = httpx.Request("POST", "https://hub/api")
    return HfHubHTTPError(f"{status} said the client", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, UsageError, "the token is not accepted, or there is none, or no such repository; nothing was published"),
        (403, UsageError, "this token has no right to do that"),
        (404, UsageError, "there is no such repository or revision, or this token must not see it"),
        (409, HubError, "it exists already, or somebody else is at work on it"),
        (412, HubError, "it moved meanwhile, somebody else has committed to it; nothing was published: run the same"),
        (429, HubError, "the Hub wants fewer requests (429); nothing was published: wait some minutes, then run it"),
        (500, HubError, "the Hub fails at the moment (500); nothing was published: run the same again later"),
        (503, HubError, "the Hub fails at the moment (503)"),
        (400, HubError, "the Hub refuses (400: 400 said the client); nothing was published"),
        (451, HubError, "the Hub refuses (451"),
    ],
)
def test_by_status(status: int, kind: type, words: str) -> None:
    for error in (answer(status), _caused(RuntimeError("while uploading"), answer(status))):
        line = told(error)
        assert type(line) is kind and words in str(line) and str(line).startswith(f"push to {REPO}: ")


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def test_what_the_hub_may_have_done_is_in_doubt() -> None:
    from huggingface_hub.utils import httpx

    doubt = "whether it was published is not known"
    for error in (answer(500), answer(504), httpx.ReadTimeout("x"), ValueError("no JSON")):
        line = str(told(error, doubt))
        assert doubt in line and "nothing was published" not in line
    for status in (401, 403, 404, 409, 412, 429, 400):
        assert "nothing was published" in str(told(answer(status), doubt))


def test_a_connection_that_failed() -> None:
    from huggingface_hub.utils import httpx

    failed = [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), ConnectionResetError(errno.ECONNRESET, "x")]
    failed += [_caused(RuntimeError("while uploading"), httpx.ReadError("cut")), OSError("ETag of another file")]
    for error in failed:
        line = told(error)
        assert isinstance(line, HubError) and "the connection failed (" in str(line), line
        assert str(line).endswith("nothing was published: run the same again")
    for nonsense in (ValueError("no JSON"), KeyError("sha"), RuntimeError("odd")):
        assert "the Hub's answer makes no sense" in str(told(nonsense))


LOCAL = [
    PermissionError(errno.EACCES, "Permission denied", "/cache/blobs"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/etc/ca.pem"),
    OSError(errno.ENOSPC, "No space left on device"),  # a write tells no name
    OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(errno.EIO, "Input/output error"),
]


@pytest.mark.parametrize("error", LOCAL, ids=repr)
def test_a_file_of_this_machine_is_not_the_hub(error: OSError) -> None:
    for raised in (error, _caused(RuntimeError("Error while uploading 'model.safetensors' to the Hub."), error)):
        with pytest.raises(OSError) as caught, hub_errors(REPO, "push to", "nothing was published"):
            raise raised
        assert caught.value is error


def test_an_error_of_ours_goes_through() -> None:
    with pytest.raises(UsageError, match=r"^mine$"), hub_errors(REPO, "push to", "nothing was published"):
        raise UsageError("mine")
