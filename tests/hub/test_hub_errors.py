"""What the Hub's client raises, told as one line that says what to do: by status, by cause, and by who is to blame."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from conftest import REPO, refused
from facts import tells

from natix_hf.errors import HubError, NatixError, UsageError
from natix_hf.provenance.hub import hub_errors

OUTCOME, DOUBT = "what is left of it", "what may be left of it"


def told(error: BaseException, in_doubt: str | None = None) -> NatixError:
    with pytest.raises(NatixError) as caught, hub_errors(REPO, "push to", OUTCOME, in_doubt):
        raise error
    assert tells(caught.value, REPO, in_doubt if in_doubt and in_doubt in str(caught.value) else OUTCOME)
    return caught.value


def answer(status: int) -> Any:
    """As the client raises it."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    request = httpx.Request("POST", "https://hub/api")
    return HfHubHTTPError(f"{status} said the client", response=httpx.Response(status, request=request))


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


# What each says beside the outcome: the way out, the status or the client's own words.
STATUSES: dict[int, tuple[type, tuple[str, ...]]] = {
    401: (UsageError, ("hf auth login", "HF_TOKEN")), 403: (UsageError, ("right", "403 said the client")),
    404: (UsageError, ("no such repository",)), 409: (HubError, ("409 said the client", "again")),
    412: (HubError, ("somebody else", "again")), 429: (HubError, ("429", "minutes", "again")),
    500: (HubError, ("500", "again")), 503: (HubError, ("503", "again")),
    400: (HubError, ("400", "400 said the client")), 451: (HubError, ("451",)),
}  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
def test_by_status(status: int) -> None:
    kind, words = STATUSES[status]
    lines = [told(error) for error in (answer(status), _caused(RuntimeError("while uploading"), answer(status)))]
    assert [type(line) for line in lines] == [kind] * 2
    assert all(tells(line, *words) for line in lines)
    others = {str(told(answer(other))) for other in STATUSES if other != status}
    assert str(lines[0]) not in others


def test_what_the_hub_may_have_done_is_in_doubt() -> None:
    from huggingface_hub.utils import httpx

    for error in (answer(500), answer(504), httpx.ReadTimeout("x"), ValueError("no JSON")):
        line = str(told(error, DOUBT))
        assert DOUBT in line and OUTCOME not in line
    for status in (401, 403, 404, 409, 412, 429, 400):
        assert OUTCOME in str(told(answer(status), DOUBT))


def test_a_connection_that_failed() -> None:
    from huggingface_hub.utils import httpx

    failed = [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), ConnectionResetError(errno.ECONNRESET, "x")]
    failed += [_caused(RuntimeError("while uploading"), httpx.ReadError("cut")), OSError("ETag of another file")]
    for error in failed:
        assert isinstance(told(error), HubError) and tells(told(error), "connection", "again")
    for nonsense in (ValueError("no JSON"), KeyError("sha"), RuntimeError("odd")):
        assert isinstance(told(nonsense), HubError) and "connection" not in str(told(nonsense))


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
        with pytest.raises(OSError) as caught, hub_errors(REPO, "push to", OUTCOME):
            raise raised
        assert caught.value is error


def test_an_error_of_ours_goes_through() -> None:
    with refused(UsageError, "mine") as caught, hub_errors(REPO, "push to", OUTCOME):
        raise UsageError("mine")
    assert str(caught.value) == "mine"
